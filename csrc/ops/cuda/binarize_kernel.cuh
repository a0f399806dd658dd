// Bodies of binarize and _binarize_backward: elementwise over dense tensors.
#pragma once

#include "../../core/quantizer.h"
#include "elements.cuh"

namespace pathways::cuda {

// NaN stays NaN: a check would have to wait for the device.
template <class T>
__global__ void __launch_bounds__(kStreamThreads, kStreamBlocks)
    binarize_kernel(const T* __restrict__ importance, int64_t count,
                    bool aligned, T* __restrict__ mask) {
  using Acc = ComputeOf<T>;
  constexpr int kElements = kVectorBytes / sizeof(T);
  const int64_t stride =
      static_cast<int64_t>(gridDim.x) * kStreamThreads * kElements;
  for (int64_t first =
           (static_cast<int64_t>(blockIdx.x) * kStreamThreads + threadIdx.x) *
           kElements;
       first < count; first += stride) {
    if (aligned && first + kElements <= count) {
      const auto from = load_vector<T, kElements>(importance + first);
      Vector<T, kElements> to;
#pragma unroll
      for (int k = 0; k < kElements; ++k) {
        const Acc value = to_compute<Acc>(from.value[k]);
        to.value[k] = from_compute<T>(binarize_value(value));
      }
      store_vector(mask + first, to);
    } else {
#pragma unroll 1
      for (int k = 0; k < kElements && first + k < count; ++k) {
        const Acc value = to_compute<Acc>(importance[first + k]);
        mask[first + k] = from_compute<T>(binarize_value(value));
      }
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kStreamThreads, kStreamBlocks)
    binarize_backward_kernel(const T* __restrict__ grad,
                             const T* __restrict__ importance, int64_t count,
                             bool aligned, ComputeOf<T> inverse_variance,
                             ComputeOf<T> scale, T* __restrict__ result) {
  using Acc = ComputeOf<T>;
  constexpr int kElements = kVectorBytes / sizeof(T);
  const int64_t stride =
      static_cast<int64_t>(gridDim.x) * kStreamThreads * kElements;
  for (int64_t first =
           (static_cast<int64_t>(blockIdx.x) * kStreamThreads + threadIdx.x) *
           kElements;
       first < count; first += stride) {
    if (aligned && first + kElements <= count) {
      const auto from = load_vector<T, kElements>(importance + first);
      const auto incoming = load_vector<T, kElements>(grad + first);
      Vector<T, kElements> to;
#pragma unroll
      for (int k = 0; k < kElements; ++k)
        to.value[k] =
            from_compute<T>(to_compute<Acc>(incoming.value[k]) *
                            binarize_derivative(to_compute<Acc>(from.value[k]),
                                                inverse_variance, scale));
      store_vector(result + first, to);
    } else {
#pragma unroll 1
      for (int k = 0; k < kElements && first + k < count; ++k)
        result[first + k] = from_compute<T>(
            to_compute<Acc>(grad[first + k]) *
            binarize_derivative(to_compute<Acc>(importance[first + k]),
                                inverse_variance, scale));
    }
  }
}

template <class T>
unsigned binarize_grid(int64_t count, const Device& device) {
  const int64_t vectors = ceil_div(count, kVectorBytes / sizeof(T));
  return stream_grid(ceil_div(vectors, kStreamThreads), device);
}

inline void launch_binarize(ElementType type, const void* importance,
                            int64_t count, void* mask, const Device& device) {
  if (count == 0)
    return;
  const bool aligned = is_aligned(importance) && is_aligned(mask);
  with_floating_type(type, [&]<class T>() {
    const auto kernel = &binarize_kernel<T>;
    PATHWAYS_LAUNCH(kernel, binarize_grid<T>(count, device), kStreamThreads, 0,
                    device.stream, static_cast<const T*>(importance), count,
                    aligned, static_cast<T*>(mask));
  });
}

inline void launch_binarize_backward(ElementType type, const void* grad,
                                     const void* importance, int64_t count,
                                     QuantizerConstants constants, void* result,
                                     const Device& device) {
  if (count == 0)
    return;
  const bool aligned =
      is_aligned(grad) && is_aligned(importance) && is_aligned(result);
  with_floating_type(type, [&]<class T>() {
    using Acc = ComputeOf<T>;
    const auto kernel = &binarize_backward_kernel<T>;
    PATHWAYS_LAUNCH(kernel, binarize_grid<T>(count, device), kStreamThreads, 0,
                    device.stream, static_cast<const T*>(grad),
                    static_cast<const T*>(importance), count, aligned,
                    static_cast<Acc>(constants.inverse_variance),
                    static_cast<Acc>(constants.scale), static_cast<T*>(result));
  });
}

}  // namespace pathways::cuda
