#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "gated_arguments.h"

namespace pathways {
namespace {

// One channel of one input in contiguous memory: the gate decides once for the
// whole row.
template <Activation kAct, typename T, typename C>
void gate_row(const T* x, T* y, int64_t count, C gate, C bias, C baseline) {
  if (gate == C(0)) {
    std::fill(y, y + count, static_cast<T>(baseline));
  } else if (gate == C(1)) {
    for (int64_t i = 0; i < count; ++i) {
      y[i] = static_cast<T>(activate<kAct>(static_cast<C>(x[i]) + bias));
    }
  } else {
    const C rest = (C(1) - gate) * baseline;
    for (int64_t i = 0; i < count; ++i) {
      y[i] = static_cast<T>(gate * activate<kAct>(static_cast<C>(x[i]) + bias) +
                            rest);
    }
  }
}

template <Activation kAct, typename T, typename Gates,
          typename C = ComputeType<T>>
void gate_contiguous(const T* x, T* y, const Gates* gates,
                     const GatedPlan& plan, const C* bias, const C* baseline) {
  const int64_t total = plan.batch * plan.channels * plan.space;
  torch::stable::parallel_for(
      0, total, kGatedGrain, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end;) {
          const int64_t row = i / plan.space;
          const int64_t stop = std::min(end, (row + 1) * plan.space);
          const int64_t c = row % plan.channels;
          if (plan.unit) {
            for (int64_t k = i; k < stop; ++k) {
              y[k] = static_cast<T>(gate_value<kAct>(static_cast<C>(x[k]),
                                                     static_cast<C>(gates[k]),
                                                     bias[c], baseline[c]));
            }
          } else {
            const C gate = static_cast<C>(gates[plan.gate_per_input ? row : c]);
            gate_row<kAct>(x + i, y + i, stop - i, gate, bias[c], baseline[c]);
          }
          i = stop;
        }
      });
}

template <Activation kAct, typename T, typename Gates,
          typename C = ComputeType<T>>
void gate_innermost(const T* x, T* y, const Gates* gates, const GatedPlan& plan,
                    const C* bias, const C* baseline) {
  const int64_t positions = plan.batch * plan.space;
  const int64_t grain = std::max<int64_t>(1, kGatedGrain / plan.channels);
  torch::stable::parallel_for(
      0, positions, grain, [&](int64_t begin, int64_t end) {
        for (int64_t p = begin; p < end; ++p) {
          const int64_t first = p * plan.channels;
          const Gates* gate =
              gates +
              (plan.unit ? first
                         : (plan.gate_per_input ? p / plan.space * plan.channels
                                                : 0));
          for (int64_t c = 0; c < plan.channels; ++c) {
            y[first + c] = static_cast<T>(gate_value<kAct>(
                static_cast<C>(x[first + c]), static_cast<C>(gate[c]), bias[c],
                baseline[c]));
          }
        }
      });
}

// Writes into `output`, which has the layout of `input` and may be the same
// memory.
void gate_into(const Tensor& input, Tensor& output, const Tensor& gate,
               const GatedPlan& plan, const std::optional<Tensor>& bias,
               const std::optional<Tensor>& baseline) {
  const Tensor gates = gate_for(gate, input, plan);
  dispatch_floating(input.scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    using C = ComputeType<T>;
    const std::vector<C> biases = bias_values<C>(bias, plan.channels);
    const std::vector<C> baselines =
        baseline_values<C>(baseline, plan.channels);
    const T* x = static_cast<const T*>(input.const_data_ptr());
    T* y = static_cast<T*>(output.mutable_data_ptr());
    const auto run = [&](auto act, const auto* gate_data) {
      constexpr Activation kAct = decltype(act)::value;
      if (plan.channel_innermost) {
        gate_innermost<kAct>(x, y, gate_data, plan, biases.data(),
                             baselines.data());
      } else {
        gate_contiguous<kAct>(x, y, gate_data, plan, biases.data(),
                              baselines.data());
      }
    };
    dispatch_activation(plan.activation, [&](auto act) {
      if (gates.scalar_type() == input.scalar_type()) {
        run(act, static_cast<const T*>(gates.const_data_ptr()));
      } else {
        run(act, static_cast<const C*>(gates.const_data_ptr()));
      }
    });
  });
}

Tensor gated_forward_kernel(const Tensor& x, const Tensor& gate,
                            const std::optional<Tensor>& bias,
                            const std::string& activation,
                            const std::optional<Tensor>& baseline) {
  const GatedPlan plan =
      plan_gated("gated_forward", x, gate, bias, activation, baseline);
  const Tensor input = dense_input(x, plan);
  Tensor output = torch::stable::empty_like(input);
  if (output.numel() != 0) {
    gate_into(input, output, gate, plan, bias, baseline);
  }
  return output;
}

void gated_forward_inplace_kernel(Tensor x, const Tensor& gate,
                                  const std::optional<Tensor>& bias,
                                  const std::string& activation,
                                  const std::optional<Tensor>& baseline) {
  const GatedPlan plan =
      plan_gated("gated_forward_", x, gate, bias, activation, baseline);
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
