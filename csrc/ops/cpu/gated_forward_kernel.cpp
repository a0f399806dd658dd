#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "fresh_memory.h"
#include "gated_arguments.h"

namespace pathways {
namespace {

// Writes into `output`, which has the layout of `input` and may be the same
// memory.
void gate_into(const Tensor& input, const Tensor& output, const Tensor& gate,
               const GatedPlan& plan, const std::optional<Tensor>& bias,
               const std::optional<Tensor>& baseline) {
  const GatedArguments arguments(plan, input, gate, bias, baseline);
  GatedForwardCall call{};
  arguments.fill(&call);
  call.y = output.mutable_data_ptr();
  call.large = size_in_bytes(output) >= kLargeBytes;
  call.plain_masks =
      call.shape.channel_innermost && call.bare && arguments.is_hard();
  const int64_t grain = gated_grain(call.activation);
  const GatedForwardLoops& loops = gated_forward_loops();
  if (call.shape.channel_innermost) {
    torch::stable::parallel_for(
        0, call.shape.batch * call.rows_per_input(),
        std::max<int64_t>(1, grain / call.period),
        [&](int64_t begin, int64_t end) { loops.innermost(call, begin, end); });
  } else {
    torch::stable::parallel_for(0, call.shape.count(), grain,
                                [&](int64_t begin, int64_t end) {
                                  loops.contiguous(call, begin, end);
                                });
  }
}

Tensor gated_forward_kernel(const Tensor& x, const Tensor& gate,
                            const std::optional<Tensor>& bias,
                            const Text& activation,
                            const std::optional<Tensor>& baseline) {
  const GatedPlan plan =
      plan_gated("gated_forward", x, gate, bias, activation, baseline);
  const Tensor input = dense_input(x, plan);
  Tensor output = empty_in_layout_of(input);
  if (output.numel() != 0) {
    prefer_huge_pages(output);
    gate_into(input, output, gate, plan, bias, baseline);
  }
  return output;
}

void gated_forward_inplace_kernel(Tensor x, const Tensor& gate,
                                  const std::optional<Tensor>& bias,
                                  const Text& activation,
                                  const std::optional<Tensor>& baseline) {
  const GatedPlan plan =
      plan_gated("gated_forward_", x, gate, bias, activation, baseline);
  check_writable("gated_forward_", x);
  if (x.numel() == 0) {
    return;
  }
  Tensor work = dense_input(x, plan);
  gate_into(work, work, gate, plan, bias, baseline);
  if (!plan.dense) {
    torch::stable::copy_(x, work);
  }
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pathways, CPU, m)
{
  m.impl("gated_forward", TORCH_BOX(&gated_forward_kernel));
  m.impl("gated_forward_", TORCH_BOX(&gated_forward_inplace_kernel));
}

}  // namespace pathways
