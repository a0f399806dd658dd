#include <torch/csrc/stable/library.h>

#include <atomic>

#include "../../core/quantizer.h"
#include "../check.h"
#include "../stable.h"
#include "dispatch.h"

namespace pathways {
namespace {

// Elements per task: about 10 us of work, far above the cost of waking a
// thread.
constexpr int64_t kGrain = 32768;

Tensor binarize_kernel(const Tensor& importance, double sigma, double gamma) {
  check_binarize("binarize", importance, sigma, gamma);
  const Tensor input = torch::stable::contiguous(importance);
  Tensor output = torch::stable::empty_like(input);
  std::atomic<bool> found_nan{false};
  dispatch_floating(input.scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    using C = ComputeType<T>;
    const T* from = static_cast<const T*>(input.const_data_ptr());
    T* to = static_cast<T*>(output.mutable_data_ptr());
    torch::stable::parallel_for(
        0, input.numel(), kGrain, [&](int64_t begin, int64_t end) {
          bool nan = false;
          for (int64_t i = begin; i < end; ++i) {
            const C value = static_cast<C>(from[i]);
            nan |= value != value;
            to[i] = static_cast<T>(binarize_value(value));
          }
          if (nan) {
            found_nan.store(true, std::memory_order_relaxed);
          }
        });
  });
  PATHWAYS_CHECK(!found_nan.load(),
                 "binarize: importance must not contain NaN, got NaN");
  return output;
}

Tensor binarize_backward_kernel(const Tensor& grad, const Tensor& importance,
                                double sigma, double gamma) {
  check_binarize_backward("_binarize_backward", grad, importance, sigma, gamma);
  const Tensor input = torch::stable::contiguous(importance);
  const Tensor incoming = torch::stable::contiguous(grad);
  Tensor output = torch::stable::empty_like(input);
  const QuantizerConstants constants = quantizer_constants(sigma, gamma);
  dispatch_floating(input.scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    using C = ComputeType<T>;
    const T* from = static_cast<const T*>(input.const_data_ptr());
    const T* grads = static_cast<const T*>(incoming.const_data_ptr());
    T* to = static_cast<T*>(output.mutable_data_ptr());
    const C inverse_variance = static_cast<C>(constants.inverse_variance);
    const C scale = static_cast<C>(constants.scale);
    torch::stable::parallel_for(
        0, input.numel(), kGrain, [&](int64_t begin, int64_t end) {
          for (int64_t i = begin; i < end; ++i) {
            const C slope = binarize_derivative(static_cast<C>(from[i]),
                                                inverse_variance, scale);
            to[i] = static_cast<T>(static_cast<C>(grads[i]) * slope);
          }
        });
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
