// The instructions that CUDA C++ has no name for. Each is one small function,
// so that the shim of tests/host_cuda can put its own in their place: a product
// that follows the fragment layout of the PTX ISA lane by lane, copies that
// land between their issue and the wait, reciprocals that are a little off.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#include <cuda_runtime.h>

namespace pathways::cuda {

// sum += popcount(A and B) for a 16 x 256 and a 256 x 8 matrix of bits, of
// which every lane of the warp holds a part. With g = lane / 4, t = lane % 4
// and k in units of 32 bits:
//   a[0]: row g, k = t         a[1]: row g + 8, k = t
//   a[2]: row g, k = t + 4     a[3]: row g + 8, k = t + 4
//   b[0]: column g, k = t      b[1]: column g, k = t + 4
//   sum[0], sum[1]: row g, columns 2 t and 2 t + 1
//   sum[2], sum[3]: row g + 8, columns 2 t and 2 t + 1
// PTX ISA, "Matrix Fragments for mma.m16n8k256"; sm_80 and later. The host code
// never launches a kernel that calls it on an older device.
__device__ __forceinline__ void mma_and_popc(int32_t (&sum)[4],
                                             const uint32_t (&a)[4],
                                             const uint32_t (&b)[2]) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.and.popc "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(sum[0]), "+r"(sum[1]), "+r"(sum[2]), "+r"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  __trap();
#endif
}

// Copies `bytes` (0 to `size`, which is 8 or 16) from global to shared memory
// and fills the rest with zeros, past the registers. Both addresses are
// multiples of `size`; what was copied may be read after wait_for_copies and,
// by other threads, a barrier.
template <int size>
__device__ __forceinline__ void copy_async(void* shared, const void* global,
                                           int bytes) {
  static_assert(size == 8 || size == 16);
#if __CUDA_ARCH__ >= 800
  const unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  if constexpr (size == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :
                 : "r"(to), "l"(global), "r"(bytes)
                 : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;"
                 :
                 : "r"(to), "l"(global), "r"(bytes)
                 : "memory");
#else
  __trap();
#endif
}

// A store to global memory that stays whole: nvcc takes an assignment of 16
// bytes apart where it loses sight of the alignment.
template <class T>
__device__ __forceinline__ void store_global(T* to, T value) {
  if constexpr (sizeof(T) == 16)
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};"
                 :
                 : "l"(__cvta_generic_to_global(to)), "r"(value.x),
                   "r"(value.y), "r"(value.z), "r"(value.w)
                 : "memory");
  else
    *to = value;
}

// 1 / value to within one unit in the last place.
__device__ __forceinline__ float approximate_reciprocal(float value) {
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(value));
  return result;
}

// Closes a group of copies of this thread, which may be empty.
__device__ __forceinline__ void commit_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" : : : "memory");
#endif
}

// Waits until at most `pending` of the youngest groups are still under way.
template <int pending>
__device__ __forceinline__ void wait_for_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" : : "n"(pending) : "memory");
#endif
}

}  // namespace pathways::cuda

#endif
