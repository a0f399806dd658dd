// The bit product of bit_tile.cuh on tensor cores: one warp instruction
// multiplies 16 x 256 with 256 x 8 bits. Native on sm_80 to sm_90; on sm_100
// and later ptxas makes about a hundred instructions of it, see
// bit_product.h.
#pragma once

#include "bit_tile.cuh"
#include "ptx.cuh"

namespace pathways::cuda {

// Tiles of `rows` x `rows`, rows 64 or 128. The larger one reads half as many
// bytes for each result, the smaller one leaves more blocks to share out.
//
// Eight warps, 2 x 4 of them, each compute rows / 2 x rows / 4 results. Words
// come in chunks of eight (512 bits, 64 bytes of a row), kStages of them in
// flight: two are copied while one is multiplied.
//
// A lane reads 16 neighbouring bytes of a row, the bits that it needs for two
// instructions. The instruction itself wants bits 32 t and 32 t + 128 of the
// row for lane t, but a sum over k does not mind its order, as long as A and B
// agree. In shared memory the rows are sorted such that eight neighbouring
// lanes, which one pass of the memory serves, always read 128 neighbouring
// bytes: no bank is asked twice.
template <int rows>
struct MmaTile {
  static constexpr int kRows = rows;
  static constexpr int kPerThread = rows / kTileSide;
  static constexpr int kPairs = kPerThread / 2;
  static constexpr int kWords = 8;
  static constexpr int kStages = 3;
  static constexpr int kPiecesPerRow = 4;
  // Rows that a thread copies of each side.
  static constexpr int kCopies = rows * kPiecesPerRow / kTileThreads;
  // 128 registers for a thread: 64 of them are counts when rows is 128.
  static constexpr int kBlocks = 2;

  using Piece = Vector<uint32_t, 4>;

  struct Storage {
    Piece a[kStages][rows][kPiecesPerRow];
    Piece b[kStages][rows][kPiecesPerRow];
  };

  // The row of the tile that is stored at `slot`. Of A, 16 rows with the same
  // place in their group of four stand together: lanes g = 0 .. 7 of an
  // instruction hold rows that are four apart. Of B, pairs of neighbouring
  // columns do, because a lane holds the results of columns 2 t and 2 t + 1.
  static __device__ __forceinline__ int row_of_a(int slot) {
    return TileThread::position(slot % kTileSide, slot / kTileSide);
  }
  static __device__ __forceinline__ int row_of_b(int slot) {
    return TileThread::position(slot / 2 % kTileSide,
                                slot / (2 * kTileSide) * 2 + slot % 2);
  }

  // What a thread copies of one side: the piece threadIdx.x % 4 of the rows at
  // slots threadIdx.x / 4 + 64 i.
  struct Source {
    const uint64_t* row[kCopies];
    bool wide;  // rows begin at multiples of 16 bytes

    template <class RowOf>
    __device__ __forceinline__ Source(const RowSource& from, int64_t first,
                                      int count, const RowOf& row_of)
        : wide(from.wide) {
#pragma unroll
      for (int i = 0; i < kCopies; ++i) {
        const int at = row_of(threadIdx.x / kPiecesPerRow +
                              i * (kTileThreads / kPiecesPerRow));
        row[i] = from.row(first + min_of(at, count - 1));
      }
    }

    // The eight words from `first` on; zeros behind the last of `words`, where
    // no byte is read.
    __device__ __forceinline__ void copy(
        int first, int words, Piece (&to)[rows][kPiecesPerRow]) const {
      const int piece = threadIdx.x % kPiecesPerRow;
      const int word = first + piece * 2;
      const int left = min_of(2, word < words ? words - word : 0);
#pragma unroll
      for (int i = 0; i < kCopies; ++i) {
        const uint64_t* from = row[i] + word;
        Piece* target = &to[threadIdx.x / kPiecesPerRow +
                            i * (kTileThreads / kPiecesPerRow)][piece];
        if (wide) {
          copy_async<16>(target, from, left * 8);
        } else {
          copy_async<8>(target, from, left > 0 ? 8 : 0);
          copy_async<8>(&target->value[2], from + 1, left > 1 ? 8 : 0);
        }
      }
    }
  };

  // As PopcTile::add_product.
  static __device__ __forceinline__ void add_product(
      const RowSource& a, int64_t first_a, int rows_a, const RowSource& b,
      int64_t first_b, int rows_b, int64_t words, Storage& tile,
      int32_t (&count)[kPerThread][kPerThread]) {
    const Source from_a(a, first_a, rows_a, row_of_a);
    const Source from_b(b, first_b, rows_b, row_of_b);
    // In each turn chunk `ahead` sets out and the one before the kStages - 1
    // youngest is multiplied.
    const int last = static_cast<int>(words);
    constexpr int kLead = (kStages - 1) * kWords;
    int stage = 0;
#pragma unroll 1
    for (int ahead = 0; ahead < last + kLead; ahead += kWords) {
      // The chunk to multiply has landed for all threads, and nobody reads the
      // stage that is filled next any more.
      wait_for_copies<kStages - 2>();
      __syncthreads();
      if (ahead < last) {
        from_a.copy(ahead, last, tile.a[stage]);
        from_b.copy(ahead, last, tile.b[stage]);
      }
      commit_copies();
      stage = stage == kStages - 1 ? 0 : stage + 1;
      if (ahead >= kLead)
        add_chunk(tile.a[stage], tile.b[stage], count);
    }
  }

  static __device__ __forceinline__ void add_chunk(
      const Piece (&a)[rows][kPiecesPerRow],
      const Piece (&b)[rows][kPiecesPerRow],
      int32_t (&count)[kPerThread][kPerThread]) {
    const int lane = threadIdx.x % kWarpSize;
    const int warp = threadIdx.x / kWarpSize;
    const int g = lane / 4;
    const int t = lane % 4;
    Piece right[kPairs];
#pragma unroll
    for (int n = 0; n < kPairs; ++n)
      right[n] = b[n * 2 * kTileSide + warp % 4 * 8 + g][t];
#pragma unroll
    for (int m = 0; m < kPairs; ++m) {
      const Piece low = a[2 * m * kTileSide + warp / 4 * 8 + g][t];
      const Piece high = a[(2 * m + 1) * kTileSide + warp / 4 * 8 + g][t];
#pragma unroll
      for (int n = 0; n < kPairs; ++n) {
        int32_t sum[4] = {count[2 * m][2 * n], count[2 * m][2 * n + 1],
                          count[2 * m + 1][2 * n], count[2 * m + 1][2 * n + 1]};
#pragma unroll
        for (int half = 0; half < 4; half += 2)
          mma_and_popc(sum,
                       {low.value[half], high.value[half], low.value[half + 1],
                        high.value[half + 1]},
                       {right[n].value[half], right[n].value[half + 1]});
        count[2 * m][2 * n] = sum[0];
        count[2 * m][2 * n + 1] = sum[1];
        count[2 * m + 1][2 * n] = sum[2];
        count[2 * m + 1][2 * n + 1] = sum[3];
      }
    }
  }
};

}  // namespace pathways::cuda
