// Bodies of class_overlap: sums of pairwise IoU over all pairs of two classes,
// streaming. A block multiplies one run of up to 64 rows with one group of
// runs and leaves one double; a second kernel adds those in a fixed order, so
// the result does not depend on the grid. IoU and sums are float64; the pair
// counts follow from the class sizes.
#pragma once

#include "bit_product.h"
#include "class_tiles.h"
#include "mma_tile.cuh"

namespace pathways::cuda {

static_assert(kOverlapRows == kTileBlockRows);

__device__ __forceinline__ double block_sum(double value, double* shared) {
  value = group_sum<kWarpSize>(value);
  if (threadIdx.x % kWarpSize == 0)
    shared[threadIdx.x / kWarpSize] = value;
  __syncthreads();
  double sum = 0;
#pragma unroll
  for (int warp = 0; warp < kTileThreads / kWarpSize; ++warp)
    sum += shared[warp];
  __syncthreads();
  return sum;
}

// partial[run * groups + group]; 0 where the group lies before the run.
// Every thread adds the same pairs in the same order whichever tile counts
// them, so the sums do not depend on the device.
template <class Tile>
__global__ void __launch_bounds__(kTileThreads, Tile::kBlocks)
    class_overlap_kernel(RowSource source, int64_t words,
                         const int32_t* __restrict__ row_count,
                         const RowRun* __restrict__ runs, int64_t run_count,
                         const RunRange* __restrict__ groups,
                         int64_t group_count, double* __restrict__ partial) {
  static_assert(Tile::kRows == kOverlapRows);
  constexpr int kPerThread = Tile::kPerThread;
  PATHWAYS_SHARED(tile, typename Tile::Storage);
  PATHWAYS_SHARED(warp_sums, double[kTileThreads / kWarpSize]);
  const TileThread thread;
  for (int64_t item = blockIdx.x; item < run_count * group_count;
       item += gridDim.x) {
    const int64_t at = item / group_count;
    const RowRun run = runs[at];
    const RunRange group = groups[item % group_count];
    // Same class: every unordered pair once. Runs of later classes follow.
    int64_t from = group.first;
    const int64_t to = group.first + group.count;
    if (group.label < run.label)
      from = to;
    else if (group.label == run.label && from < at)
      from = at;
    double sum = 0;
    for (int64_t other = from; other < to; ++other) {
      const RowRun next = runs[other];
      int32_t count[kPerThread][kPerThread] = {};
      Tile::add_product(source, run.first, run.count, source, next.first,
                        next.count, words, tile, count);
#pragma unroll
      for (int i = 0; i < kPerThread; ++i) {
#pragma unroll
        for (int j = 0; j < kPerThread; ++j) {
          const int row = thread.row(i);
          const int column = thread.column(j);
          if (row < run.count && column < next.count &&
              (other != at || row < column))
            sum += iou_from_counts(
                count[i][j], row_count[source.order[run.first + row]],
                row_count[source.order[next.first + column]]);
        }
      }
    }
    sum = block_sum(sum, warp_sums);
    if (threadIdx.x == 0)
      partial[item] = sum;
  }
}

// One warp per pair of classes c <= d; writes both triangles.
__global__ void __launch_bounds__(kStreamThreads, kStreamBlocks)
    class_overlap_reduce_kernel(const double* __restrict__ partial,
                                const int64_t* __restrict__ run_begin,
                                const int64_t* __restrict__ group_begin,
                                int64_t group_count, int64_t classes,
                                double* __restrict__ out) {
  constexpr int kWarps = kStreamThreads / kWarpSize;
  const int lane = threadIdx.x % kWarpSize;
  for (int64_t pair =
           static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarpSize;
       pair < classes * classes;
       pair += static_cast<int64_t>(gridDim.x) * kWarps) {
    const int64_t c = pair / classes;
    const int64_t d = pair % classes;
    if (d < c)
      continue;
    const int64_t first_group = group_begin[d];
    const int64_t width = group_begin[d + 1] - first_group;
    const int64_t total = (run_begin[c + 1] - run_begin[c]) * width;
    double sum = 0;
    for (int64_t k = lane; k < total; k += kWarpSize)
      sum += partial[(run_begin[c] + k / width) * group_count + first_group +
                     k % width];
    sum = group_sum<kWarpSize>(sum);
    if (lane == 0) {
      out[c * classes + d] = sum;
      out[d * classes + c] = sum;
    }
  }
}

inline void launch_class_overlap(const PackedRows& rows, int64_t words_per_row,
                                 BitProduct product, const int32_t* row_count,
                                 const OverlapTables& tables, int64_t classes,
                                 double* partial, double* out,
                                 const Device& device) {
  if (classes == 0)
    return;
  const int64_t items = tables.run_count * tables.group_count;
  if (items > 0) {
    // A block per item, so that the hardware balances items of unequal length.
    constexpr int64_t kLargestGrid = int64_t{1} << 30;
    const unsigned grid =
        static_cast<unsigned>(items < kLargestGrid ? items : kLargestGrid);
    const RowSource source(rows, tables.order);
    const auto kernel = product == BitProduct::kPopc
                            ? &class_overlap_kernel<PopcTile>
                            : &class_overlap_kernel<MmaTile<kOverlapRows>>;
    PATHWAYS_LAUNCH(kernel, grid, kTileThreads, 0, device.stream, source,
                    words_per_row, row_count, tables.runs, tables.run_count,
                    tables.groups, tables.group_count, partial);
  }
  const unsigned grid = stream_grid(
      ceil_div(classes * classes, kStreamThreads / kWarpSize), device);
  const auto kernel = &class_overlap_reduce_kernel;
  PATHWAYS_LAUNCH(kernel, grid, kStreamThreads, 0, device.stream, partial,
                  tables.run_begin, tables.group_begin, tables.group_count,
                  classes, out);
}

}  // namespace pathways::cuda
