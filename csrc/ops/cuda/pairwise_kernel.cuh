// Bodies of pairwise_intersection and pairwise_iou (int32 or float32 [N, M]
// from packed rows) and of the popcounts of single rows that IoU needs.
#pragma once

#include "bit_tile.cuh"

namespace pathways::cuda {

// Neurons in each row: a warp per row, grid-stride.
__global__ void __launch_bounds__(kStreamThreads, kStreamBlocks)
    row_count_kernel(const uint64_t* __restrict__ words, int64_t stride,
                     int64_t rows, int64_t words_per_row,
                     int32_t* __restrict__ count) {
  constexpr int kWarps = kStreamThreads / kWarpSize;
  const int lane = threadIdx.x % kWarpSize;
  for (int64_t row =
           static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarpSize;
       row < rows; row += static_cast<int64_t>(gridDim.x) * kWarps) {
    const uint64_t* from = words + row * stride;
    int32_t sum = 0;
    for (int64_t word = lane; word < words_per_row; word += kWarpSize)
      sum += popcount64(from[word]);
    sum = group_sum<kWarpSize>(sum);
    if (lane == 0)
      count[row] = sum;
  }
}

inline void launch_row_count(const PackedRows& rows, int64_t words_per_row,
                             int32_t* count, const Device& device) {
  if (rows.rows == 0)
    return;
  const unsigned grid =
      stream_grid(ceil_div(rows.rows, kStreamThreads / kWarpSize), device);
  const auto kernel = &row_count_kernel;
  PATHWAYS_LAUNCH(kernel, grid, kStreamThreads, 0, device.stream, rows.words,
                  rows.stride, rows.rows, words_per_row, count);
}

struct IntersectionResult {
  using Value = int32_t;

  __device__ int32_t operator()(int32_t both, int64_t, int64_t) const {
    return both;
  }
};

struct IouResult {
  using Value = float;
  const int32_t* count_a;
  const int32_t* count_b;

  __device__ float operator()(int32_t both, int64_t i, int64_t j) const {
    return iou_from_counts_float(both, count_a[i], count_b[j]);
  }
};

// One block per tile of 64 x 64 results, tiles grid-stride. `symmetric` says
// that a and b are the same rows: tiles below the diagonal are mirrored.
template <class Result>
__global__ void __launch_bounds__(kTileThreads, kTileBlocks)
    pairwise_kernel(RowSource a, int64_t rows_a, RowSource b, int64_t rows_b,
                    int64_t words, bool symmetric, Result result,
                    typename Result::Value* __restrict__ out) {
  __shared__ TileStorage tile;
  const int tx = threadIdx.x % kTileSide;
  const int ty = threadIdx.x / kTileSide;
  const int64_t tiles_b = (rows_b + kTileRows - 1) / kTileRows;
  const int64_t tiles = (rows_a + kTileRows - 1) / kTileRows * tiles_b;
  for (int64_t t = blockIdx.x; t < tiles; t += gridDim.x) {
    const int64_t first_a = t / tiles_b * kTileRows;
    const int64_t first_b = t % tiles_b * kTileRows;
    if (symmetric && first_b < first_a)
      continue;
    int32_t count[kTilePerThread][kTilePerThread] = {};
    const int in_a =
        static_cast<int>(min_of<int64_t>(rows_a - first_a, kTileRows));
    const int in_b =
        static_cast<int>(min_of<int64_t>(rows_b - first_b, kTileRows));
    add_tile_product(a, first_a, in_a, b, first_b, in_b, words, tile, count);
#pragma unroll
    for (int i = 0; i < kTilePerThread; ++i) {
#pragma unroll
      for (int j = 0; j < kTilePerThread; ++j) {
        const int row = ty + kTileSide * i;
        const int column = tx + kTileSide * j;
        if (row < in_a && column < in_b) {
          const int64_t p = first_a + row;
          const int64_t q = first_b + column;
          const auto value = result(count[i][j], p, q);
          out[p * rows_b + q] = value;
          if (symmetric && first_b > first_a)
            out[q * rows_b + p] = value;
        }
      }
    }
  }
}

template <class Result>
void launch_pairwise(const PackedRows& a, const PackedRows& b,
                     int64_t words_per_row, Result result,
                     typename Result::Value* out, const Device& device) {
  if (a.rows == 0 || b.rows == 0)
    return;
  const unsigned grid = stream_grid(
      ceil_div(a.rows, kTileRows) * ceil_div(b.rows, kTileRows), device);
  const bool symmetric =
      a.words == b.words && a.stride == b.stride && a.rows == b.rows;
  const RowSource from_a{a.words, a.stride, nullptr};
  const RowSource from_b{b.words, b.stride, nullptr};
  const auto kernel = &pairwise_kernel<Result>;
  PATHWAYS_LAUNCH(kernel, grid, kTileThreads, 0, device.stream, from_a, a.rows,
                  from_b, b.rows, words_per_row, symmetric, result, out);
}

inline void launch_pairwise_intersection(const PackedRows& a,
                                         const PackedRows& b,
                                         int64_t words_per_row, int32_t* out,
                                         const Device& device) {
  launch_pairwise(a, b, words_per_row, IntersectionResult{}, out, device);
}

inline void launch_pairwise_iou(const PackedRows& a, const PackedRows& b,
                                int64_t words_per_row, const int32_t* count_a,
                                const int32_t* count_b, float* out,
                                const Device& device) {
  launch_pairwise(a, b, words_per_row, IouResult{count_a, count_b}, out,
                  device);
}

}  // namespace pathways::cuda
