// What the CUDA kernels of this directory share. No torch header is included,
// so that nvcc needs seconds for a file and tests/host_cuda can compile the
// same source with the host compiler (its shim defines the names that
// otherwise come from nvcc and cuda_runtime.h, and the macros below).
#pragma once

#include <cstring>

#include "launch.h"
#include "ptx.cuh"

#if defined(__CUDACC__)

// `kernel` must not contain a bare comma: pass a `const auto` holding it.
#define PATHWAYS_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  kernel<<<(grid), (block), (shared_bytes), (stream)>>>(__VA_ARGS__)

// Declares `name`, of the type that follows, in the shared memory of the block.
#define PATHWAYS_SHARED(name, ...) \
  __shared__::pathways::cuda::Same<__VA_ARGS__> name
#elif !defined(PATHWAYS_LAUNCH)
#error "compile with nvcc, or include the shim of tests/host_cuda first"
#endif

namespace pathways::cuda {

constexpr int kWarpSize = 32;
constexpr unsigned kFullMask = 0xffffffffu;

// Threads per block of the streaming kernels. 256 leaves the scheduler eight
// warps per block and divides the 2048 (sm_80, 90, 100) and 1536 (sm_120)
// threads of a multiprocessor evenly.
constexpr int kStreamThreads = 256;

// Blocks of a streaming kernel that must fit on a multiprocessor: 64 registers
// for a thread. Without the number ptxas aims higher and spills.
constexpr int kStreamBlocks = 4;

// Resident blocks asked for per multiprocessor: enough to fill it at 256
// threads per block, few enough that a thread's set-up is paid once.
constexpr int kBlocksPerMultiprocessor = 8;

// T itself; lets a macro take a type such as int[4].
template <class T>
struct SameType {
  using Type = T;
};
template <class T>
using Same = typename SameType<T>::Type;

template <class T, int N>
struct alignas(sizeof(T) * N) Vector {
  T value[N];
};

// CUDA's own type of so many bytes, for one access.
template <int bytes>
struct RawVector;
template <>
struct RawVector<1> {
  using Type = uint8_t;
};
template <>
struct RawVector<2> {
  using Type = uint16_t;
};
template <>
struct RawVector<4> {
  using Type = uint32_t;
};
template <>
struct RawVector<8> {
  using Type = uint2;
};
template <>
struct RawVector<16> {
  using Type = uint4;
};

template <class T, int N>
__device__ __forceinline__ Vector<T, N> load_vector(const T* from) {
  using Raw = typename RawVector<sizeof(T) * N>::Type;
  const Raw raw = *reinterpret_cast<const Raw*>(from);
  Vector<T, N> result;
  memcpy(&result, &raw, sizeof(raw));
  return result;
}

// To global memory.
template <class T, int N>
__device__ __forceinline__ void store_vector(T* to, const Vector<T, N>& from) {
  using Raw = typename RawVector<sizeof(T) * N>::Type;
  Raw raw;
  memcpy(&raw, &from, sizeof(raw));
  store_global(reinterpret_cast<Raw*>(to), raw);
}

// Blocks for a grid-stride loop over `work` items of a block each.
inline unsigned stream_grid(int64_t work, const Device& device) {
  const int64_t limit =
      static_cast<int64_t>(device.multiprocessors) * kBlocksPerMultiprocessor;
  return static_cast<unsigned>(work < limit ? work : limit);
}

template <class T>
__device__ __forceinline__ T min_of(T a, T b) {
  return b < a ? b : a;
}

// Sum over groups of `width` adjacent lanes (a power of two), the same tree on
// every run; every lane of the warp must call it.
template <int width, class T>
__device__ __forceinline__ T group_sum(T value) {
#pragma unroll
  for (int offset = width / 2; offset > 0; offset /= 2)
    value += __shfl_xor_sync(kFullMask, value, offset);
  return value;
}

// A flat index i = (a * middle + b) * inner + r as its three digits. Kernels
// compute it once by division and then move it by a constant step, because a
// 64-bit division costs more than the memory access it would serve.
struct Digits {
  int64_t a, b, r;
};

struct Radix {
  int64_t middle, inner;

  __host__ __device__ Digits split(int64_t index) const {
    const int64_t row = index / inner;
    return {row / middle, row % middle, index % inner};
  }

  // Both arguments hold digits below their radix, so one carry is enough.
  __host__ __device__ Digits add(const Digits& x, const Digits& step) const {
    Digits sum{x.a + step.a, x.b + step.b, x.r + step.r};
    if (sum.r >= inner) {
      sum.r -= inner;
      ++sum.b;
    }
    if (sum.b >= middle) {
      sum.b -= middle;
      ++sum.a;
    }
    return sum;
  }
};

}  // namespace pathways::cuda
