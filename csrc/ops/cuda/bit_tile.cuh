// The bit product |A_i and B_j| of one tile of packed rows with another, on the
// integer units. mma_tile.cuh does the same on tensor cores; both give a thread
// the same counts, so the kernels on top take either. Counts are int32, exact
// up to 2^31 - 1 neurons in a row; the callers check that. A word of a row is
// therefore counted in int, too.
#pragma once

#include "../../core/bits.h"
#include "common.cuh"

namespace pathways::cuda {

// Rows of one side of a tile: `order` (or null for the identity) maps a
// position to a row, so that class_overlap needs no sorted copy of the words.
struct RowSource {
  const uint64_t* words;
  int64_t stride;
  const int64_t* order;
  bool wide;  // every row begins at a multiple of 16 bytes

  RowSource(const PackedRows& rows, const int64_t* order)
      : words(rows.words),
        stride(rows.stride),
        order(order),
        wide(is_aligned(rows.words) && rows.stride % 2 == 0) {}

  __device__ const uint64_t* row(int64_t position) const {
    return words + (order ? order[position] : position) * stride;
  }
};

// Where the counts of a tile are. A block of 256 threads is a grid of 16 x 16,
// arranged so that a warp is 8 x 4 of it, as in the result of an mma
// instruction. A thread holds 4 x 4 neighbouring counts of every 64 x 64
// results: count[i][j] belongs to row(i) of A and column(j) of B, and four
// neighbours are one 16-byte store in either direction.
constexpr int kTileThreads = 256;
constexpr int kTileSide = 16;
constexpr int kTileGroup = 4;
constexpr int kTileBlockRows = kTileSide * kTileGroup;

struct TileThread {
  int y, x;

  __device__ __forceinline__ TileThread()
      : y(threadIdx.x / 128 * 8 + threadIdx.x % kWarpSize / 4),
        x(threadIdx.x / kWarpSize % 4 * 4 + threadIdx.x % 4) {}

  static __device__ __forceinline__ int position(int group, int index) {
    return index / kTileGroup * kTileBlockRows + group * kTileGroup +
           index % kTileGroup;
  }
  __device__ __forceinline__ int row(int i) const { return position(y, i); }
  __device__ __forceinline__ int column(int j) const { return position(x, j); }
};

// The product by popcounts: every word read from shared memory serves four of
// them, which are then what limits the kernel.
struct PopcTile {
  static constexpr int kRows = kTileBlockRows;
  static constexpr int kPerThread = kRows / kTileSide;
  static constexpr int kWords = 16;
  // 80 registers for a thread: 24 warps on a multiprocessor.
  static constexpr int kBlocks = 3;

  struct Storage {
    // Two rows more than needed: a thread reads 16 bytes at once, and few of
    // the neighbouring words that fill the tile fall into the same bank.
    alignas(kVectorBytes) uint64_t a[kWords][kRows + 2];
    alignas(kVectorBytes) uint64_t b[kWords][kRows + 2];
  };

  // Adds |A and B| over all words to `count`, for rows_a positions of A from
  // first_a on and rows_b of B (at least one each). Counts of rows beyond the
  // end mean nothing: the last row stands in for them. All threads of the block
  // call it; `tile` may be used again afterwards.
  static __device__ __forceinline__ void add_product(
      const RowSource& a, int64_t first_a, int rows_a, const RowSource& b,
      int64_t first_b, int rows_b, int64_t words, Storage& tile,
      int32_t (&count)[kPerThread][kPerThread]) {
    // While the tile is filled, 16 neighbouring threads read 16 neighbouring
    // words (128 bytes) of a row.
    const int column = threadIdx.x % kWords;
    const int first_row = threadIdx.x / kWords;
    const uint64_t* from_a[kPerThread];
    const uint64_t* from_b[kPerThread];
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      const int row = first_row + kTileSide * i;
      from_a[i] = a.row(first_a + min_of(row, rows_a - 1));
      from_b[i] = b.row(first_b + min_of(row, rows_b - 1));
    }
    const TileThread at;
    const int last = static_cast<int>(words);
#pragma unroll 1
    for (int first = 0; first < last; first += kWords) {
      const int word = first + column;
#pragma unroll
      for (int i = 0; i < kPerThread; ++i) {
        const int row = first_row + kTileSide * i;
        tile.a[column][row] = word < last ? from_a[i][word] : 0;
        tile.b[column][row] = word < last ? from_b[i][word] : 0;
      }
      __syncthreads();
#pragma unroll 4
      for (int k = 0; k < kWords; ++k) {
        uint64_t left[kPerThread];
        uint64_t right[kPerThread];
#pragma unroll
        for (int i = 0; i < kPerThread; i += 2) {
          const auto pair_a = load_vector<uint64_t, 2>(&tile.a[k][at.row(i)]);
          const auto pair_b =
              load_vector<uint64_t, 2>(&tile.b[k][at.column(i)]);
          left[i] = pair_a.value[0];
          left[i + 1] = pair_a.value[1];
          right[i] = pair_b.value[0];
          right[i + 1] = pair_b.value[1];
        }
#pragma unroll
        for (int i = 0; i < kPerThread; ++i)
#pragma unroll
          for (int j = 0; j < kPerThread; ++j)
            count[i][j] += popcount64(left[i] & right[j]);
      }
      __syncthreads();
    }
  }
};

}  // namespace pathways::cuda
