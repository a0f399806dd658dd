// Bodies of pairwise_intersection and pairwise_iou (int32 or float32 [N, M]
// from packed rows) and of the popcounts of single rows that IoU needs.
#pragma once

#include "bit_product.h"
#include "mma_tile.cuh"

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

// What is made of |A_i and B_j|; size_a and size_b are of one row; 0 stands
// for a row beyond the end.
struct IntersectionResult {
  using Value = int32_t;

  __device__ int32_t size_a(int64_t) const { return 0; }
  __device__ int32_t size_b(int64_t) const { return 0; }
  __device__ int32_t operator()(int32_t both, int32_t, int32_t) const {
    return both;
  }
};

// both / joined for 0 <= both <= joined, joined > 0, correctly rounded as the
// division of the two counts as floats would be. These are the instructions
// that the compiler makes of that division; it puts a check for tiny and huge
// operands before them, which counts never are, and a call behind it.
__device__ __forceinline__ float count_ratio(int32_t both, int32_t joined) {
  const float a = static_cast<float>(both);
  const float b = static_cast<float>(joined);
  float y = approximate_reciprocal(b);
  y = fmaf(fmaf(-b, y, 1.0f), y, y);
  float q = a * y;
  q = fmaf(fmaf(-b, q, a), y, q);
  return fmaf(fmaf(-b, q, a), y, q);
}

// iou_from_counts_float; 32 bits do, for a union has at most 2^31 - 1 neurons.
struct IouResult {
  using Value = float;
  const int32_t* count_a;
  const int32_t* count_b;

  __device__ int32_t size_a(int64_t row) const { return count_a[row]; }
  __device__ int32_t size_b(int64_t row) const { return count_b[row]; }
  __device__ float operator()(int32_t both, int32_t size_a,
                              int32_t size_b) const {
    const int32_t joined = size_a - both + size_b;
    return joined == 0 ? 1.0f : count_ratio(both, joined);
  }
};

// The tiles of a result in the order that blocks take them. Of a symmetric one
// only those on and above the diagonal: row r of `across` tiles has across - r
// of them, which together with row across - 1 - r make across + 1.
struct TileGrid {
  int64_t down, across;
  bool symmetric;

  __host__ __device__ int64_t count() const {
    return symmetric ? across * (across + 1) / 2 : down * across;
  }
  // In tiles; int holds them for any result that fits into memory.
  __device__ void locate(int64_t index, int* row, int* column) const {
    const int64_t width = symmetric ? across + 1 : across;
    const int last = static_cast<int>(across) - 1;
    *row = static_cast<int>(index / width);
    *column = static_cast<int>(index % width);
    if (!symmetric)
      return;
    *column += *row;
    if (*column > last) {
      *column -= *row + 1;
      *row = last - *row;
    }
  }
};

// Writes four neighbouring values of which `count` exist; `aligned` says that
// all groups of four of the result begin at multiples of 16 bytes.
template <class Value>
__device__ __forceinline__ void store_group(
    Value* to, const Vector<Value, kTileGroup>& values, int64_t count,
    bool aligned) {
  if (aligned && count >= kTileGroup) {
    store_vector(to, values);
  } else {
#pragma unroll
    for (int k = 0; k < kTileGroup; ++k)
      if (k < count)
        to[k] = values.value[k];
  }
}

// One block per tile of results: the hardware balances them, and a block need
// not remember where it is. `grid.symmetric` says that a and
// b are the same rows: tiles above the diagonal are written twice.
template <class Tile, class Result>
__global__ void __launch_bounds__(kTileThreads, Tile::kBlocks)
    pairwise_kernel(RowSource a, int64_t rows_a, RowSource b, int64_t rows_b,
                    int64_t words, TileGrid grid, bool aligned, Result result,
                    typename Result::Value* __restrict__ out) {
  using Value = typename Result::Value;
  constexpr int kPerThread = Tile::kPerThread;
  PATHWAYS_SHARED(tile, typename Tile::Storage);
  int down, across;
  grid.locate(blockIdx.x, &down, &across);
  const int64_t first_a = static_cast<int64_t>(down) * Tile::kRows;
  const int64_t first_b = static_cast<int64_t>(across) * Tile::kRows;
  const int in_a =
      static_cast<int>(min_of<int64_t>(rows_a - first_a, Tile::kRows));
  const int in_b =
      static_cast<int>(min_of<int64_t>(rows_b - first_b, Tile::kRows));
  int32_t count[kPerThread][kPerThread] = {};
  Tile::add_product(a, first_a, in_a, b, first_b, in_b, words, tile, count);
  const TileThread at;
  int32_t size_b[kPerThread];
#pragma unroll
  for (int j = 0; j < kPerThread; ++j)
    size_b[j] = at.column(j) < in_b ? result.size_b(first_b + at.column(j)) : 0;
  Value value[kPerThread][kPerThread];
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const int32_t size_a =
        at.row(i) < in_a ? result.size_a(first_a + at.row(i)) : 0;
#pragma unroll
    for (int j = 0; j < kPerThread; ++j)
      value[i][j] = result(count[i][j], size_a, size_b[j]);
  }
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
#pragma unroll
    for (int j = 0; j < kPerThread; j += kTileGroup) {
      if (at.row(i) >= in_a)
        continue;
      Vector<Value, kTileGroup> group;
#pragma unroll
      for (int k = 0; k < kTileGroup; ++k)
        group.value[k] = value[i][j + k];
      store_group(out + (first_a + at.row(i)) * rows_b + first_b + at.column(j),
                  group, in_b - at.column(j), aligned);
    }
  }
  if (!grid.symmetric || first_a == first_b)
    return;
#pragma unroll
  for (int j = 0; j < kPerThread; ++j) {
#pragma unroll
    for (int i = 0; i < kPerThread; i += kTileGroup) {
      if (at.column(j) >= in_b)
        continue;
      Vector<Value, kTileGroup> group;
#pragma unroll
      for (int k = 0; k < kTileGroup; ++k)
        group.value[k] = value[i + k][j];
      store_group(out + (first_b + at.column(j)) * rows_b + first_a + at.row(i),
                  group, in_a - at.row(i), aligned);
    }
  }
}

template <class Tile, class Result>
void launch_pairwise_tile(const PackedRows& a, const PackedRows& b,
                          int64_t words_per_row, Result result,
                          typename Result::Value* out, const Device& device) {
  const bool symmetric =
      a.words == b.words && a.stride == b.stride && a.rows == b.rows;
  const TileGrid tiles{ceil_div(a.rows, Tile::kRows),
                       ceil_div(b.rows, Tile::kRows), symmetric};
  // 2^31 tiles would be 32 TiB of results.
  const unsigned grid = static_cast<unsigned>(tiles.count());
  const bool aligned = is_aligned(out) && b.rows % kTileGroup == 0;
  const RowSource from_a(a, nullptr);
  const RowSource from_b(b, nullptr);
  const auto kernel = &pairwise_kernel<Tile, Result>;
  PATHWAYS_LAUNCH(kernel, grid, kTileThreads, 0, device.stream, from_a, a.rows,
                  from_b, b.rows, words_per_row, tiles, aligned, result, out);
}

template <class Result>
void launch_pairwise(const PackedRows& a, const PackedRows& b,
                     int64_t words_per_row, BitProduct product, Result result,
                     typename Result::Value* out, const Device& device) {
  if (a.rows == 0 || b.rows == 0)
    return;
  switch (product) {
    case BitProduct::kMma128:
      return launch_pairwise_tile<MmaTile<128>>(a, b, words_per_row, result,
                                                out, device);
    case BitProduct::kMma64:
      return launch_pairwise_tile<MmaTile<64>>(a, b, words_per_row, result, out,
                                               device);
    default:
      return launch_pairwise_tile<PopcTile>(a, b, words_per_row, result, out,
                                            device);
  }
}

inline void launch_pairwise_intersection(const PackedRows& a,
                                         const PackedRows& b,
                                         int64_t words_per_row,
                                         BitProduct product, int32_t* out,
                                         const Device& device) {
  launch_pairwise(a, b, words_per_row, product, IntersectionResult{}, out,
                  device);
}

inline void launch_pairwise_iou(const PackedRows& a, const PackedRows& b,
                                int64_t words_per_row, BitProduct product,
                                const int32_t* count_a, const int32_t* count_b,
                                float* out, const Device& device) {
  launch_pairwise(a, b, words_per_row, product, IouResult{count_a, count_b},
                  out, device);
}

}  // namespace pathways::cuda
