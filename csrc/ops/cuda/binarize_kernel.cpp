#include <torch/csrc/stable/library.h>

#include "../stable.h"
#include "launch_scope.h"

namespace pathways::cuda {
namespace {

Tensor binarize_kernel(const Tensor& importance, double sigma, double gamma) {
  check_binarize("binarize", importance, sigma, gamma);
  const LaunchScope scope("binarize", importance);
  const Tensor input = torch::stable::contiguous(importance);
  const Tensor output = empty_in_layout_of(input);
  binarize(element_type(input.scalar_type()), input.const_data_ptr(),
           input.numel(), output.mutable_data_ptr(), scope.device());
  scope.check();
  return output;
}

Tensor binarize_backward_kernel(const Tensor& grad, const Tensor& importance,
                                double sigma, double gamma) {
  check_binarize_backward("_binarize_backward", grad, importance, sigma, gamma);
  const LaunchScope scope("_binarize_backward", importance);
  const Tensor input = torch::stable::contiguous(importance);
  const Tensor incoming = torch::stable::contiguous(grad);
  const Tensor output = empty_in_layout_of(input);
  binarize_backward(element_type(input.scalar_type()),
                    incoming.const_data_ptr(), input.const_data_ptr(),
                    input.numel(), quantizer_constants(sigma, gamma),
                    output.mutable_data_ptr(), scope.device());
  scope.check();
  return output;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pathways, CUDA, m)
{
  m.impl("binarize", TORCH_BOX(&binarize_kernel));
  m.impl("_binarize_backward", TORCH_BOX(&binarize_backward_kernel));
}

}  // namespace pathways::cuda
