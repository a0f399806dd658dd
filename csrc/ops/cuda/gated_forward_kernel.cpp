#include <torch/csrc/stable/library.h>

#include "gated_arguments.h"

namespace pathways::cuda {
namespace {

// `output` has the layout of `input` and may be the same memory.
void gate_into(const char* op, const Tensor& input, const Tensor& output,
               const Tensor& gate, const GatedPlan& plan,
               const std::optional<Tensor>& bias,
               const std::optional<Tensor>& baseline) {
  const LaunchScope scope(op, input);
  const ScalarType compute = compute_type(input.scalar_type());
  const Tensor gates = gate_for(gate, input, plan);
  const std::optional<Tensor> biases = contiguous_as(bias, compute);
  const std::optional<Tensor> baselines = contiguous_as(baseline, compute);
  GatedForwardCall call{};
  call.type = element_type(input.scalar_type());
  call.x = input.const_data_ptr();
  call.y = output.mutable_data_ptr();
  call.gate = const_elements(gates);
  call.bias = data_or_null(biases);
  call.baseline = data_or_null(baselines);
  call.activation = plan.activation;
  call.shape = plan.shape;
  gated_forward(call, scope.device());
  scope.check();
}

Tensor gated_forward_kernel(const Tensor& x, const Tensor& gate,
                            const std::optional<Tensor>& bias,
                            const Text& activation,
                            const std::optional<Tensor>& baseline) {
  const char* op = "gated_forward";
  const GatedPlan plan = plan_gated(op, x, gate, bias, activation, baseline);
  const Tensor input = dense_input(x, plan);
  const Tensor output = empty_in_layout_of(input);
  if (output.numel() != 0) {
    gate_into(op, input, output, gate, plan, bias, baseline);
  }
  return output;
}

void gated_forward_inplace_kernel(Tensor x, const Tensor& gate,
                                  const std::optional<Tensor>& bias,
                                  const Text& activation,
                                  const std::optional<Tensor>& baseline) {
  const char* op = "gated_forward_";
  const GatedPlan plan = plan_gated(op, x, gate, bias, activation, baseline);
  check_writable(op, x);
  if (x.numel() == 0) {
    return;
  }
  const Tensor work = dense_input(x, plan);
  gate_into(op, work, work, gate, plan, bias, baseline);
  if (!plan.dense) {
    torch::stable::copy_(x, work);
  }
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pathways, CUDA, m)
{
  m.impl("gated_forward", TORCH_BOX(&gated_forward_kernel));
  m.impl("gated_forward_", TORCH_BOX(&gated_forward_inplace_kernel));
}

}  // namespace pathways::cuda
