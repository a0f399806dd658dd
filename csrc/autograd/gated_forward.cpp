// Gradients of the gating ops for programs without Python. Not to be loaded
// into a Python process, where pathways/ops/autograd.py registers them: the
// last registration wins silently.

#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "autograd.h"

namespace pathways {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

using Forward = at::Tensor(const at::Tensor&, const at::Tensor&,
                           const MaybeTensor&, std::string_view,
                           const MaybeTensor&);
using InPlace = void(at::Tensor&, const at::Tensor&, const MaybeTensor&,
                     std::string_view, const MaybeTensor&);
using Backward = std::tuple<at::Tensor, at::Tensor, at::Tensor>(
    const at::Tensor&, const at::Tensor&, const at::Tensor&, const MaybeTensor&,
    std::string_view, const MaybeTensor&, bool, bool, bool);

MaybeTensor or_nothing(const at::Tensor& tensor) {
  return tensor.defined() ? MaybeTensor(tensor) : std::nullopt;
}

class Gated : public torch::autograd::Function<Gated> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x,
                            const at::Tensor& gate, const MaybeTensor& bias,
                            const std::string& activation,
                            const MaybeTensor& baseline) {
    context->save_for_backward({x, gate, bias.value_or(at::Tensor()),
                                baseline.value_or(at::Tensor())});
    context->saved_data["activation"] = activation;
    return call_below<Forward>("pathways::gated_forward", x, gate, bias,
                               activation, baseline);
  }

  static variable_list backward(AutogradContext* context,
                                const variable_list& grads) {
    const variable_list saved = context->get_saved_variables();
    const bool need_x = context->needs_input_grad(0);
    const bool need_gate = context->needs_input_grad(1);
    // Only tensors that are there are counted.
    const bool need_bias = saved[2].defined() && context->needs_input_grad(2);
    auto [grad_x, grad_gate, grad_bias] = detail::call_op<Backward>(
        "pathways::_gated_backward", grads[0], saved[0], saved[1],
        or_nothing(saved[2]), context->saved_data["activation"].toStringRef(),
        or_nothing(saved[3]), need_x, need_gate, need_bias);
    const auto if_needed = [](bool needed, const at::Tensor& grad) {
      return needed ? grad : at::Tensor();
    };
    return {if_needed(need_x, grad_x), if_needed(need_gate, grad_gate),
            if_needed(need_bias, grad_bias), at::Tensor(), at::Tensor()};
  }
};

at::Tensor gated_forward_autograd(const at::Tensor& x, const at::Tensor& gate,
                                  const MaybeTensor& bias,
                                  std::string_view activation,
                                  const MaybeTensor& baseline) {
  TORCH_CHECK(!needs_gradient(baseline),
              "gated_forward: baseline must not require a gradient, got one "
              "that does; detach it");
  if (needs_gradient(x) || needs_gradient(gate) || needs_gradient(bias)) {
    return Gated::apply(x, gate, bias, std::string(activation), baseline);
  }
  return call_below<Forward>("pathways::gated_forward", x, gate, bias,
                             activation, baseline);
}

void gated_forward_inplace_autograd(at::Tensor& x, const at::Tensor& gate,
                                    const MaybeTensor& bias,
                                    std::string_view activation,
                                    const MaybeTensor& baseline) {
  TORCH_CHECK(!needs_gradient(x) && !needs_gradient(gate) &&
                  !needs_gradient(bias) && !needs_gradient(baseline),
              "gated_forward_: arguments must not require a gradient, got one "
              "that does; the op is in place and for inference only, use "
              "gated_forward");
  call_below<InPlace>("pathways::gated_forward_", x, gate, bias, activation,
                      baseline);
  if (!x.is_inference()) {
    // What autograd saved of it is no longer there.
    x.unsafeGetTensorImpl()->bump_version();
  }
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> gated_backward_autograd(
    const at::Tensor& grad, const at::Tensor& x, const at::Tensor& gate,
    const MaybeTensor& bias, std::string_view activation,
    const MaybeTensor& baseline, bool need_x, bool need_gate, bool need_bias) {
  TORCH_CHECK(!needs_gradient(grad) && !needs_gradient(x) &&
                  !needs_gradient(gate) && !needs_gradient(bias),
              "gated_forward: the backward pass is not differentiable");
  return call_below<Backward>("pathways::_gated_backward", grad, x, gate, bias,
                              activation, baseline, need_x, need_gate,
                              need_bias);
}

}  // namespace

TORCH_LIBRARY_IMPL(pathways, Autograd, m) {
  m.impl("gated_forward", &gated_forward_autograd);
  m.impl("gated_forward_", &gated_forward_inplace_autograd);
  m.impl("_gated_backward", &gated_backward_autograd);
}

}  // namespace pathways
