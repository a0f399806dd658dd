// Body of adaptive_avg_max_pool2d. A NaN makes both results of its cell NaN.
//
// Contiguous maps: neighbouring lanes take neighbouring columns of a cell, and
// neighbouring groups of lanes neighbouring cells, so that a warp reads rows of
// a map. Channels innermost: a thread a channel of a cell, neighbours take
// neighbouring channels.
#pragma once

#include <cmath>

#include "../../core/pool_shape.h"
#include "elements.cuh"

namespace pathways::cuda {

template <class T>
struct AdaptivePoolArguments {
  const T* x;
  T* y;
  PoolShape shape;
  int lanes;  // that share a cell of a contiguous map, a power of two
};

template <class T>
struct AdaptivePoolBody {
  using Acc = ComputeOf<T>;

  struct Cell {
    int64_t row[2];
    int64_t column[2];
  };

  const AdaptivePoolArguments<T>& args;

  __device__ __forceinline__ Cell cell_at(int64_t i, int64_t j) const {
    const PoolShape& shape = args.shape;
    return {{cell_begin(i, shape.height, shape.rows),
             cell_end(i, shape.height, shape.rows)},
            {cell_begin(j, shape.width, shape.columns),
             cell_end(j, shape.width, shape.columns)}};
  }

  static __device__ __forceinline__ Acc larger(Acc value, Acc most) {
    return value > most || value != value ? value : most;
  }

  // `plane` is n * C + c, `cell` the place in the grid.
  __device__ __forceinline__ void write(int64_t plane, int64_t cell,
                                        const Cell& at, Acc sum,
                                        Acc most) const {
    const int64_t channels = args.shape.channels;
    const int64_t cells = args.shape.cells();
    const int64_t area =
        (at.row[1] - at.row[0]) * (at.column[1] - at.column[0]);
    T* const to = args.y + (plane / channels * channels + plane) * cells + cell;
    to[0] = from_compute<T>(sum / static_cast<Acc>(area));
    to[channels * cells] = from_compute<T>(most);
  }

  // Columns first, then the lanes as a tree: the same order on every run.
  __device__ __forceinline__ void contiguous() const {
    const PoolShape& shape = args.shape;
    const int lane = static_cast<int>(threadIdx.x) % args.lanes;
    const int64_t count = shape.planes() * shape.cells();
    const int64_t per_block = blockDim.x / static_cast<unsigned>(args.lanes);
    const int64_t stride = static_cast<int64_t>(gridDim.x) * per_block;
    // All threads of a block take as many steps: they exchange what they have.
    for (int64_t first = static_cast<int64_t>(blockIdx.x) * per_block;
         first < count; first += stride) {
      const int64_t index = first + threadIdx.x / args.lanes;
      const bool is_cell = index < count;
      const int64_t plane = index / shape.cells();
      const int64_t cell = index % shape.cells();
      const Cell at = cell_at(cell / shape.columns, cell % shape.columns);
      const T* const map = args.x + plane * shape.space();
      Acc sum = 0;
      Acc most = static_cast<Acc>(-INFINITY);
      for (int64_t c = at.column[0] + lane; is_cell && c < at.column[1];
           c += args.lanes) {
#pragma unroll 4
        for (int64_t r = at.row[0]; r < at.row[1]; ++r) {
          const Acc value = to_compute<Acc>(map[r * shape.width + c]);
          sum += value;
          most = larger(value, most);
        }
      }
      for (int offset = args.lanes / 2; offset > 0; offset /= 2) {
        sum += __shfl_xor_sync(kFullMask, sum, offset);
        most = larger(__shfl_xor_sync(kFullMask, most, offset), most);
      }
      if (is_cell && lane == 0)
        write(plane, cell, at, sum, most);
    }
  }

  __device__ __forceinline__ void innermost() const {
    const PoolShape& shape = args.shape;
    const int64_t count = shape.planes() * shape.cells();
    const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
    for (int64_t index =
             static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
         index < count; index += stride) {
      const int64_t c = index % shape.channels;
      const int64_t n = index / shape.channels / shape.cells();
      const int64_t cell = index / shape.channels % shape.cells();
      const Cell at = cell_at(cell / shape.columns, cell % shape.columns);
      const T* const map = args.x + n * shape.space() * shape.channels + c;
      Acc sum = 0;
      Acc most = static_cast<Acc>(-INFINITY);
      for (int64_t r = at.row[0]; r < at.row[1]; ++r) {
        const T* const row = map + r * shape.width * shape.channels;
#pragma unroll 4
        for (int64_t column = at.column[0]; column < at.column[1]; ++column) {
          const Acc value = to_compute<Acc>(row[column * shape.channels]);
          sum += value;
          most = larger(value, most);
        }
      }
      write(n * shape.channels + c, cell, at, sum, most);
    }
  }
};

template <class T, bool channel_innermost>
__global__ void __launch_bounds__(kStreamThreads, kStreamBlocks)
    adaptive_avg_max_pool2d_kernel(
        const __grid_constant__ AdaptivePoolArguments<T> args) {
  const AdaptivePoolBody<T> body{args};
  if constexpr (channel_innermost)
    body.innermost();
  else
    body.contiguous();
}

// As many lanes as the widest cell has columns, up to a warp.
inline int pool_lanes(const PoolShape& shape) {
  // Where cells overlap, the widest can have one column more.
  const int64_t widest = ceil_div(shape.width, shape.columns) +
                         (shape.width % shape.columns != 0 ? 1 : 0);
  int lanes = 1;
  while (lanes < widest && lanes < kWarpSize)
    lanes *= 2;
  return lanes;
}

template <class T>
void launch_adaptive_pool(const AdaptivePoolCall& call, const Device& device) {
  AdaptivePoolArguments<T> args{static_cast<const T*>(call.x),
                                static_cast<T*>(call.y), call.shape, 1};
  const int64_t count = call.shape.planes() * call.shape.cells();
  if (call.shape.channel_innermost) {
    const unsigned grid = stream_grid(ceil_div(count, kStreamThreads), device);
    const auto kernel = &adaptive_avg_max_pool2d_kernel<T, true>;
    PATHWAYS_LAUNCH(kernel, grid, kStreamThreads, 0, device.stream, args);
  } else {
    args.lanes = pool_lanes(call.shape);
    const unsigned grid =
        stream_grid(ceil_div(count, kStreamThreads / args.lanes), device);
    const auto kernel = &adaptive_avg_max_pool2d_kernel<T, false>;
    PATHWAYS_LAUNCH(kernel, grid, kStreamThreads, 0, device.stream, args);
  }
}

inline void launch_adaptive_pool(AdaptivePoolCall call, const Device& device) {
  call.shape = call.shape.folded();
  if (call.shape.planes() * call.shape.cells() == 0)
    return;
  with_floating_type(call.type,
                     [&]<class T>() { launch_adaptive_pool<T>(call, device); });
}

}  // namespace pathways::cuda
