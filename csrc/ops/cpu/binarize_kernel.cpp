#include <torch/csrc/stable/library.h>

#include <atomic>

#include "../../core/quantizer.h"
#include "../check.h"
#include "../stable.h"
#include "binarize_loops.h"
#include "dispatch.h"

namespace pathways {
namespace {

// Elements per task: about 10 us of work, far above the cost of waking a
// thread.
constexpr int64_t kGrain = 32768;

Tensor binarize_kernel(const Tensor& importance, double sigma, double gamma) {
  check_binarize("binarize", importance, sigma, gamma);
  const Tensor input = contiguous_as(importance, importance.scalar_type());
  Tensor output = empty_in_layout_of(input);
  std::atomic<bool> found_nan{false};
  const ElementType type = element_type(input.scalar_type());
  const int64_t bytes = element_bytes(type);
  const char* from = static_cast<const char*>(input.const_data_ptr());
  char* to = static_cast<char*>(output.mutable_data_ptr());
  torch::stable::parallel_for(
      0, input.numel(), kGrain, [&](int64_t begin, int64_t end) {
        if (!binarize_loops().forward(type, from + begin * bytes,
                                      to + begin * bytes, end - begin)) {
          found_nan.store(true, std::memory_order_relaxed);
        }
      });
  PATHWAYS_CHECK(!found_nan.load(),
                 "binarize: importance must not contain NaN, got NaN");
  return output;
}

Tensor binarize_backward_kernel(const Tensor& grad, const Tensor& importance,
                                double sigma, double gamma) {
  check_binarize_backward("_binarize_backward", grad, importance, sigma, gamma);
  const Tensor input = contiguous_as(importance, importance.scalar_type());
  const Tensor incoming = contiguous_as(grad, grad.scalar_type());
  Tensor output = empty_in_layout_of(input);
  const QuantizerConstants constants = quantizer_constants(sigma, gamma);
  const ElementType type = element_type(input.scalar_type());
  const int64_t bytes = element_bytes(type);
  const char* from = static_cast<const char*>(input.const_data_ptr());
  const char* grads = static_cast<const char*>(incoming.const_data_ptr());
  char* to = static_cast<char*>(output.mutable_data_ptr());
  torch::stable::parallel_for(
      0, input.numel(), kGrain, [&](int64_t begin, int64_t end) {
        binarize_loops().backward(type, grads + begin * bytes,
                                  from + begin * bytes, to + begin * bytes,
                                  end - begin, constants.inverse_variance,
                                  constants.scale);
      });
  return output;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pathways, CPU, m)
{
  m.impl("binarize", TORCH_BOX(&binarize_kernel));
  m.impl("_binarize_backward", TORCH_BOX(&binarize_backward_kernel));
}

}  // namespace pathways
