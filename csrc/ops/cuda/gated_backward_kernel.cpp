#include <torch/csrc/stable/library.h>

#include <tuple>

#include "gated_arguments.h"

namespace pathways::cuda {
namespace {

std::tuple<Tensor, Tensor, Tensor> gated_backward_kernel(
    const Tensor& grad, const Tensor& x, const Tensor& gate,
    const std::optional<Tensor>& bias, const Text& activation,
    const std::optional<Tensor>& baseline, bool need_x, bool need_gate,
    bool need_bias) {
  const char* op = "_gated_backward";
  const GatedPlan plan = plan_gated(op, x, gate, bias, activation, baseline);
  check_gated_backward(op, grad, x, gate, bias, need_gate, need_bias);
  const LaunchScope scope(op, x);
  const Tensor input = dense_input(x, plan);
  const ScalarType compute = compute_type(x.scalar_type());
  const ScalarType bias_type =
      bias.has_value() ? bias->scalar_type() : x.scalar_type();
  const std::vector<int64_t> nothing{0};
  const std::vector<int64_t> gate_shape(gate.sizes().begin(),
                                        gate.sizes().end());
  const std::vector<int64_t> bias_shape{plan.shape.channels};

  const Tensor incoming = in_layout_of(grad, input, input.scalar_type());
  const Tensor gates = gate_for(gate, input, plan);
  const Tensor grad_x =
      need_x ? empty_in_layout_of(input)
             : torch::stable::new_empty(x, nothing, x.scalar_type());
  Tensor grad_gate =
      torch::stable::new_empty(gate, nothing, gate.scalar_type());
  if (need_gate) {
    grad_gate = plan.shape.unit ? empty_in_layout_of(input, gate.scalar_type())
                                : torch::stable::new_empty(gate, gate_shape,
                                                           gate.scalar_type());
  }
  const Tensor grad_bias =
      torch::stable::new_empty(x, need_bias ? bias_shape : nothing, bias_type);
  if (!need_x && !need_gate && !need_bias) {
    return {grad_x, grad_gate, grad_bias};
  }

  const std::optional<Tensor> biases = contiguous_as(bias, compute);
  const std::optional<Tensor> baselines = contiguous_as(baseline, compute);
  GatedBackwardCall call{};
  call.type = element_type(x.scalar_type());
  call.grad = incoming.const_data_ptr();
  call.x = input.const_data_ptr();
  call.gate = const_elements(gates);
  call.bias = data_or_null(biases);
  call.baseline = data_or_null(baselines);
  call.activation = plan.activation;
  call.grad_x = need_x ? grad_x.mutable_data_ptr() : nullptr;
  if (need_gate) {
    call.grad_gate = elements(grad_gate);
  }
  if (need_bias) {
    call.grad_bias = elements(grad_bias);
  }
  const GatedBackwardPlan cut = plan_gated_backward(
      plan.shape, call.type, call.grad, call.x, call.grad_x);
  const std::vector<int64_t> sum_shape{cut.sum_count()};
  const Tensor gate_sums = torch::stable::new_empty(
      x, need_gate && !cut.shape.unit ? sum_shape : nothing, compute);
  const Tensor bias_sums =
      torch::stable::new_empty(x, need_bias ? sum_shape : nothing, compute);
  call.gate_sums = gate_sums.mutable_data_ptr();
  call.bias_sums = bias_sums.mutable_data_ptr();
  gated_backward(call, cut, scope.device());
  scope.check();
  return {grad_x, grad_gate, grad_bias};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pathways, CUDA, m)
{
  m.impl("_gated_backward", TORCH_BOX(&gated_backward_kernel));
}

}  // namespace pathways::cuda
