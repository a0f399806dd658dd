#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <tuple>

#include "gated_arguments.h"

namespace pathways {
namespace {

// Sums run in the compute type over at most kChunk elements in a fixed order,
// then in double: the error does not grow with the size of the map, and the
// result does not depend on the number of threads.
constexpr int64_t kChunk = 256;
// Independent partial sums, so that the compiler can use vector registers.
constexpr int64_t kLanes = 16;
// Channels per task when they are innermost: 256 bytes of float32, whole cache
// lines.
constexpr int64_t kChannelBlock = 64;

template <typename T, typename G>
struct BackwardPointers {
  using C = ComputeType<T>;
  const T* grad;
  const T* x;
  const G* gate;
  const C* bias;
  const C* baseline;
  T* grad_x;          // null when not needed
  G* grad_gate;       // unit gates only; null when not needed
  double* gate_sums;  // [N, C], channel gates only; null when not needed
  double* bias_sums;  // [N, C]; null when not needed
};

// One row: a channel of an input in contiguous memory.
template <Activation kAct, typename T, typename G, typename GateAt,
          typename C = ComputeType<T>>
void backward_row(const BackwardPointers<T, G>& p, int64_t row, int64_t channel,
                  int64_t count, GateAt gate_at) {
  const C bias = p.bias[channel];
  const C baseline = p.baseline[channel];
  const T* grad = p.grad + row * count;
  const T* x = p.x + row * count;
  T* grad_x = p.grad_x == nullptr ? nullptr : p.grad_x + row * count;
  G* grad_gate = p.grad_gate == nullptr ? nullptr : p.grad_gate + row * count;
  const bool sum_gate = p.gate_sums != nullptr;
  const bool need_gate = sum_gate || grad_gate != nullptr;
  double gate_total = 0.0;
  double bias_total = 0.0;
  for (int64_t begin = 0; begin < count; begin += kChunk) {
    const int64_t end = std::min(count, begin + kChunk);
    C gate_lanes[kLanes] = {};
    C bias_lanes[kLanes] = {};
    const auto element = [&](int64_t i, int64_t lane) {
      const C incoming = static_cast<C>(grad[i]);
      const C value = static_cast<C>(x[i]);
      const C to_x = gate_grad_x<kAct>(incoming, value, gate_at(i), bias);
      bias_lanes[lane] += to_x;
      if (grad_x != nullptr) {
        grad_x[i] = static_cast<T>(to_x);
      }
      if (need_gate) {
        const C to_gate = gate_grad_gate<kAct>(incoming, value, bias, baseline);
        gate_lanes[lane] += to_gate;
        if (grad_gate != nullptr) {
          grad_gate[i] = static_cast<G>(to_gate);
        }
      }
    };
    int64_t i = begin;
    for (; i + kLanes <= end; i += kLanes) {
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        element(i + lane, lane);
      }
    }
    for (int64_t lane = 0; i < end; ++i, ++lane) {
      element(i, lane);
    }
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      gate_total += static_cast<double>(gate_lanes[lane]);
      bias_total += static_cast<double>(bias_lanes[lane]);
    }
  }
  if (sum_gate) {
    p.gate_sums[row] = gate_total;
  }
  if (p.bias_sums != nullptr) {
    p.bias_sums[row] = bias_total;
  }
}

template <Activation kAct, typename T, typename G, typename C = ComputeType<T>>
void backward_contiguous(const BackwardPointers<T, G>& p,
                         const GatedPlan& plan) {
  const int64_t grain = std::max<int64_t>(1, kGatedGrain / plan.space);
  torch::stable::parallel_for(
      0, plan.batch * plan.channels, grain, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
          const int64_t c = row % plan.channels;
          if (plan.unit) {
            backward_row<kAct>(p, row, c, plan.space,
                               PointerGate<G, C>{p.gate + row * plan.space});
          } else {
            const C gate =
                static_cast<C>(p.gate[plan.gate_per_input ? row : c]);
            backward_row<kAct>(p, row, c, plan.space, ConstantGate<C>{gate});
          }
        }
      });
}

template <Activation kAct, typename T, typename G, typename C = ComputeType<T>>
void backward_innermost(const BackwardPointers<T, G>& p,
                        const GatedPlan& plan) {
  const int64_t channel_blocks =
      (plan.channels + kChannelBlock - 1) / kChannelBlock;
  const int64_t grain = std::max<int64_t>(
      1, kGatedGrain / (plan.space * std::min(plan.channels, kChannelBlock)));
  torch::stable::parallel_for(
      0, plan.batch * channel_blocks, grain, [&](int64_t first, int64_t last) {
        for (int64_t task = first; task < last; ++task) {
          const int64_t n = task / channel_blocks;
          const int64_t c_begin = (task % channel_blocks) * kChannelBlock;
          const int64_t width =
              std::min(kChannelBlock, plan.channels - c_begin);
          const C* bias = p.bias + c_begin;
          const C* baseline = p.baseline + c_begin;
          double gate_totals[kChannelBlock] = {};
          double bias_totals[kChannelBlock] = {};
          for (int64_t begin = 0; begin < plan.space; begin += kChunk) {
            const int64_t end = std::min(plan.space, begin + kChunk);
            C gate_sums[kChannelBlock] = {};
            C bias_sums[kChannelBlock] = {};
            for (int64_t s = begin; s < end; ++s) {
              const int64_t offset =
                  (n * plan.space + s) * plan.channels + c_begin;
              const G* gate =
                  p.gate +
                  (plan.unit ? offset
                             : (plan.gate_per_input ? n * plan.channels : 0) +
                                   c_begin);
              for (int64_t c = 0; c < width; ++c) {
                const C incoming = static_cast<C>(p.grad[offset + c]);
                const C value = static_cast<C>(p.x[offset + c]);
                const C to_x = gate_grad_x<kAct>(
                    incoming, value, static_cast<C>(gate[c]), bias[c]);
                bias_sums[c] += to_x;
                if (p.grad_x != nullptr) {
                  p.grad_x[offset + c] = static_cast<T>(to_x);
                }
                if (p.gate_sums != nullptr || p.grad_gate != nullptr) {
                  const C to_gate = gate_grad_gate<kAct>(incoming, value,
                                                         bias[c], baseline[c]);
                  gate_sums[c] += to_gate;
                  if (p.grad_gate != nullptr) {
                    p.grad_gate[offset + c] = static_cast<G>(to_gate);
                  }
                }
              }
            }
            for (int64_t c = 0; c < width; ++c) {
              gate_totals[c] += static_cast<double>(gate_sums[c]);
              bias_totals[c] += static_cast<double>(bias_sums[c]);
            }
          }
          const int64_t row = n * plan.channels + c_begin;
          if (p.gate_sums != nullptr) {
            std::copy(gate_totals, gate_totals + width, p.gate_sums + row);
          }
          if (p.bias_sums != nullptr) {
            std::copy(bias_totals, bias_totals + width, p.bias_sums + row);
          }
        }
      });
}

// [N, C] sums to [N, C], or added up over N to [C], as `type`.
Tensor reduce_sums(const Tensor& like, const std::vector<double>& sums,
                   const GatedPlan& plan, bool per_input,
                   const std::vector<int64_t>& shape, ScalarType type) {
  std::vector<double> totals;
  if (!per_input) {
    totals.assign(static_cast<size_t>(plan.channels), 0.0);
    for (int64_t n = 0; n < plan.batch; ++n) {
      for (int64_t c = 0; c < plan.channels; ++c) {
        totals[static_cast<size_t>(c)] +=
            sums[static_cast<size_t>(n * plan.channels + c)];
      }
    }
  }
  const std::vector<double>& from = per_input ? sums : totals;
  Tensor result = torch::stable::new_empty(like, shape, type);
  dispatch_floating(type, [&](auto tag) {
    using T = typename decltype(tag)::type;
    T* to = static_cast<T*>(result.mutable_data_ptr());
    for (size_t i = 0; i < from.size(); ++i) {
      to[i] = static_cast<T>(static_cast<ComputeType<T>>(from[i]));
    }
  });
  return result;
}

std::tuple<Tensor, Tensor, Tensor> gated_backward_kernel(
    const Tensor& grad, const Tensor& x, const Tensor& gate,
    const std::optional<Tensor>& bias, const std::string& activation,
    const std::optional<Tensor>& baseline, bool need_x, bool need_gate,
    bool need_bias) {
  const char* op = "_gated_backward";
  const GatedPlan plan = plan_gated(op, x, gate, bias, activation, baseline);
  check_gated_backward(op, grad, x, gate, bias, need_gate, need_bias);
  const Tensor input = dense_input(x, plan);
  const std::vector<int64_t> nothing{0};
  Tensor grad_x = need_x
                      ? torch::stable::empty_like(input)
                      : torch::stable::new_empty(x, nothing, x.scalar_type());
  Tensor grad_gate =
      torch::stable::new_empty(gate, nothing, gate.scalar_type());
  Tensor grad_bias = torch::stable::new_empty(
      x, nothing, bias.has_value() ? bias->scalar_type() : x.scalar_type());

  const Tensor incoming = in_layout_of(grad, input, input.scalar_type());
  const Tensor gates = gate_for(gate, input, plan);
  const bool sum_gate = need_gate && !plan.unit;
  std::vector<double> gate_sums(
      static_cast<size_t>(sum_gate ? plan.batch * plan.channels : 0), 0.0);
  std::vector<double> bias_sums(
      static_cast<size_t>(need_bias ? plan.batch * plan.channels : 0), 0.0);
  Tensor unit_grad = grad_gate;
  if (need_gate && plan.unit) {
    unit_grad = empty_in_layout_of(input, gates.scalar_type());
  }
  if (input.numel() != 0 && (need_x || need_gate || need_bias)) {
    dispatch_floating(input.scalar_type(), [&](auto tag) {
      using T = typename decltype(tag)::type;
      using C = ComputeType<T>;
      const std::vector<C> biases = bias_values<C>(bias, plan.channels);
      const std::vector<C> baselines =
          baseline_values<C>(baseline, plan.channels);
      const auto run = [&](auto act, auto gate_tag) {
        using G = typename decltype(gate_tag)::type;
        constexpr Activation kAct = decltype(act)::value;
        const BackwardPointers<T, G> p{
            static_cast<const T*>(incoming.const_data_ptr()),
            static_cast<const T*>(input.const_data_ptr()),
            static_cast<const G*>(gates.const_data_ptr()),
            biases.data(),
            baselines.data(),
            need_x ? static_cast<T*>(grad_x.mutable_data_ptr()) : nullptr,
            need_gate && plan.unit
                ? static_cast<G*>(unit_grad.mutable_data_ptr())
                : nullptr,
            sum_gate ? gate_sums.data() : nullptr,
            need_bias ? bias_sums.data() : nullptr,
        };
        if (plan.channel_innermost) {
          backward_innermost<kAct>(p, plan);
        } else {
          backward_contiguous<kAct>(p, plan);
        }
      };
      dispatch_activation(plan.activation, [&](auto act) {
        if (gates.scalar_type() == input.scalar_type()) {
          run(act, TypeTag<T>{});
        } else {
          run(act, TypeTag<C>{});
        }
      });
    });
  }
  if (need_gate) {
    if (plan.unit) {
      grad_gate = in_layout_of(unit_grad, input, gate.scalar_type());
    } else {
      const std::vector<int64_t> shape(gate.sizes().begin(),
                                       gate.sizes().end());
      grad_gate = reduce_sums(x, gate_sums, plan, plan.gate_per_input, shape,
                              gate.scalar_type());
    }
  }
  if (need_bias) {
    const std::vector<int64_t> shape{plan.channels};
    grad_bias =
        reduce_sums(x, bias_sums, plan, false, shape, bias->scalar_type());
  }
  return {grad_x, grad_gate, grad_bias};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pathways, CPU, m)
{
  m.impl("_gated_backward", TORCH_BOX(&gated_backward_kernel));
}

}  // namespace pathways
