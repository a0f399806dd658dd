// The bit product |A_i and B_j| of one tile of packed rows with another. Counts
// are int32, exact up to 2^31 - 1 neurons in a row; the callers check that.
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

  __device__ const uint64_t* row(int64_t position) const {
    return words + (order ? order[position] : position) * stride;
  }
};

// A block of 16 x 16 threads computes kTileRows x kTileRows counts, each
// thread 4 x 4 of them: every word read from shared memory serves four
// popcounts, which are then what limits the kernel.
constexpr int kTileSide = 16;
constexpr int kTileThreads = kTileSide * kTileSide;
constexpr int kTilePerThread = 4;
constexpr int kTileRows = kTileSide * kTilePerThread;
constexpr int kTileWords = 16;
// 80 registers for a thread: 24 warps on a multiprocessor.
constexpr int kTileBlocks = 3;

struct TileStorage {
  // One row more than needed: neighbouring words of a row then lie in
  // different banks when the tile is filled.
  uint64_t a[kTileWords][kTileRows + 1];
  uint64_t b[kTileWords][kTileRows + 1];
};

// Adds |A and B| over all words to `count`: count[i][j] belongs to row
// ty + 16 i of A (from position first_a on, rows_a of them) and row tx + 16 j
// of B. Rows beyond the end count as empty. All threads of the block call it.
__device__ __forceinline__ void add_tile_product(
    const RowSource& a, int64_t first_a, int rows_a, const RowSource& b,
    int64_t first_b, int rows_b, int64_t words, TileStorage& tile,
    int32_t (&count)[kTilePerThread][kTilePerThread]) {
  const int tx = threadIdx.x % kTileSide;
  const int ty = threadIdx.x / kTileSide;
  // While the tile is filled, 16 neighbouring threads read 16 neighbouring
  // words (128 bytes) of a row.
  const uint64_t* from_a[kTilePerThread];
  const uint64_t* from_b[kTilePerThread];
#pragma unroll
  for (int i = 0; i < kTilePerThread; ++i) {
    const int row = ty + kTileSide * i;
    from_a[i] = row < rows_a ? a.row(first_a + row) : nullptr;
    from_b[i] = row < rows_b ? b.row(first_b + row) : nullptr;
  }
  for (int64_t first = 0; first < words; first += kTileWords) {
    const int64_t word = first + tx;
#pragma unroll
    for (int i = 0; i < kTilePerThread; ++i) {
      const int row = ty + kTileSide * i;
      tile.a[tx][row] = word < words && from_a[i] ? from_a[i][word] : 0;
      tile.b[tx][row] = word < words && from_b[i] ? from_b[i][word] : 0;
    }
    __syncthreads();
#pragma unroll 4
    for (int k = 0; k < kTileWords; ++k) {
      uint64_t left[kTilePerThread];
      uint64_t right[kTilePerThread];
#pragma unroll
      for (int i = 0; i < kTilePerThread; ++i) {
        left[i] = tile.a[k][ty + kTileSide * i];
        right[i] = tile.b[k][tx + kTileSide * i];
      }
#pragma unroll
      for (int i = 0; i < kTilePerThread; ++i)
#pragma unroll
        for (int j = 0; j < kTilePerThread; ++j)
          count[i][j] += popcount64(left[i] & right[j]);
    }
    __syncthreads();
  }
}

}  // namespace pathways::cuda
