#include "binarize_kernel.cuh"

namespace pathways::cuda {

void binarize(ElementType type, const void* importance, int64_t count,
              void* mask, const Device& device) {
  launch_binarize(type, importance, count, mask, device);
}

void binarize_backward(ElementType type, const void* grad,
                       const void* importance, int64_t count,
                       QuantizerConstants constants, void* result,
                       const Device& device) {
  launch_binarize_backward(type, grad, importance, count, constants, result,
                           device);
}

}  // namespace pathways::cuda
