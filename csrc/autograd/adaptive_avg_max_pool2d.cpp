// The gradient of adaptive_avg_max_pool2d for programs without Python; see
// gated_forward.cpp. By the operations of torch, so that it has one of its own.

#include <ATen/ops/_adaptive_avg_pool2d_backward.h>
#include <ATen/ops/adaptive_max_pool2d.h>
#include <ATen/ops/adaptive_max_pool2d_backward.h>
#include <ATen/ops/zeros_like.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "autograd.h"

namespace pathways {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr const char* kName = "pathways::adaptive_avg_max_pool2d";
using Forward = at::Tensor(const at::Tensor&, int64_t, int64_t);

class AdaptivePool : public torch::autograd::Function<AdaptivePool> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x,
                            int64_t height, int64_t width) {
    context->save_for_backward({x});
    context->saved_data["height"] = height;
    context->saved_data["width"] = width;
    return call_below<Forward>(kName, x, height, width);
  }

  static variable_list backward(AutogradContext* context,
                                const variable_list& grads) {
    const at::Tensor x = context->get_saved_variables()[0];
    const int64_t channels = x.size(1);
    if (channels == 0) {  // not for torch
      return {at::zeros_like(x), at::Tensor(), at::Tensor()};
    }
    const int64_t size[] = {context->saved_data["height"].toInt(),
                            context->saved_data["width"].toInt()};
    const at::Tensor indices =
        std::get<1>(at::adaptive_max_pool2d(x.detach(), size));
    const at::Tensor means = grads[0].narrow(1, 0, channels);
    const at::Tensor maxima = grads[0].narrow(1, channels, channels);
    return {at::_adaptive_avg_pool2d_backward(means, x).add(
                at::adaptive_max_pool2d_backward(maxima, x, indices)),
            at::Tensor(), at::Tensor()};
  }
};

at::Tensor adaptive_pool_autograd(const at::Tensor& x, int64_t height,
                                  int64_t width) {
  return needs_gradient(x) ? AdaptivePool::apply(x, height, width)
                           : call_below<Forward>(kName, x, height, width);
}

}  // namespace

TORCH_LIBRARY_IMPL(pathways, Autograd, m) {
  m.impl("adaptive_avg_max_pool2d", &adaptive_pool_autograd);
}

}  // namespace pathways
