// Compiles CUDA kernels for the CPU, for functional tests without a GPU. Kernel
// sources are compiled unchanged: include this header first. It stands in for
// nvcc and cuda_runtime.h; fibers.h runs the threads, ptx.h follows the few
// instructions that kernels call by name.
//
// Not covered: memory ordering between blocks, timing, and the __half
// intrinsics.
#pragma once

#include "fibers.h"

#define __global__
#define __device__
#define __host__
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)

#define PATHWAYS_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  (static_cast<void>(shared_bytes), static_cast<void>(stream),          \
   ::shim::launch(kernel, grid, block, __VA_ARGS__))
#define PATHWAYS_SHARED(name, ...)                                  \
  static ::shim::SharedVariable name##_variable;                    \
  auto& name = *static_cast< ::pathways::cuda::Same<__VA_ARGS__>*>( \
      ::shim::shared_memory(&name##_variable,                       \
                            sizeof(::pathways::cuda::Same<__VA_ARGS__>)))

namespace shim {

SHIM_PLAIN uint3 thread_index() {
  return current_block->current->index;
}
SHIM_PLAIN uint3 block_index() {
  return current_block->index;
}
SHIM_PLAIN dim3 block_size() {
  return current_block->block;
}
SHIM_PLAIN dim3 grid_size() {
  return current_block->grid;
}
SHIM_PLAIN unsigned lane_index() {
  return current_block->current->lane;
}

}  // namespace shim

#define threadIdx (::shim::thread_index())
#define blockIdx (::shim::block_index())
#define blockDim (::shim::block_size())
#define gridDim (::shim::grid_size())

inline void __syncthreads() {
  ::shim::block_barrier(1);
}

inline void __syncwarp(unsigned mask = 0xffffffffu) {
  ::shim::warp_barrier(mask, true);
}

template <class T>
T __shfl_sync(unsigned mask, T value, int source) {
  return ::shim::exchange(mask, value, static_cast<unsigned>(source) % 32);
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask) {
  return ::shim::exchange(
      mask, value, ::shim::lane_index() ^ static_cast<unsigned>(lane_mask));
}

SHIM_PLAIN unsigned __ballot_sync(unsigned mask, int predicate) {
  ::shim::Block* block = ::shim::current_block;
  ::shim::Warp& warp = block->warps[block->current->warp];
  uint64_t* slots = warp.slot[warp.epoch & 1];
  slots[block->current->lane] = predicate != 0;
  ::shim::warp_barrier(mask, false);
  unsigned result = 0;
  for (unsigned lane = 0; lane < ::shim::kLanes; ++lane) {
    if (mask >> lane & 1) {
      result |= static_cast<unsigned>(slots[lane]) << lane;
    }
  }
  return result;
}

template <class T>
T atomicAdd(T* to, T value) {
  return __atomic_fetch_add(to, value, __ATOMIC_RELAXED);
}

#include "ptx.h"
