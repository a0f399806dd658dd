#pragma once

// Arguments of the gated CPU kernels in the form the loops want: everything in
// the memory order of x, and the channel vectors in the compute type.

#include <cstdint>
#include <optional>
#include <vector>

#include "../check.h"
#include "../stable.h"
#include "dispatch.h"

namespace pathways {

// Elements per task: about 10 us of work, far above the cost of waking a
// thread.
constexpr int64_t kGatedGrain = 32768;

// x in one of the two memory orders.
inline Tensor dense_input(const Tensor& x, const GatedPlan& plan) {
  return plan.dense ? x : torch::stable::contiguous(x);
}

// Channel gates become contiguous tensors of the compute type. Unit gates get
// the layout of x and keep their dtype when it is the one of x, so that no pass
// over a large gate is spent on converting it; a bool gate turns into the dtype
// of x, where 0 and 1 are exact.
inline Tensor gate_for(const Tensor& gate, const Tensor& x,
                       const GatedPlan& plan) {
  const ScalarType compute = compute_type(x.scalar_type());
  if (!plan.unit) {
    return contiguous_as(gate, compute);
  }
  const ScalarType type = gate.scalar_type();
  return in_layout_of(gate, x,
                      type == ScalarType::Bool || type == x.scalar_type()
                          ? x.scalar_type()
                          : compute);
}

// The values of a vector [C] in the compute type, or C times a constant when
// there is none.
template <typename C>
std::vector<C> channel_values(const std::optional<Tensor>& vector,
                              int64_t channels, C otherwise) {
  std::vector<C> values(static_cast<size_t>(channels), otherwise);
  if (vector.has_value()) {
    const Tensor source =
        contiguous_as(*vector, sizeof(C) == sizeof(double) ? ScalarType::Double
                                                           : ScalarType::Float);
    const C* from = static_cast<const C*>(source.const_data_ptr());
    values.assign(from, from + channels);
  }
  return values;
}

// Adding -0 changes no number, not even the sign of a zero, so it stands for an
// absent bias.
template <typename C>
std::vector<C> bias_values(const std::optional<Tensor>& bias,
                           int64_t channels) {
  return channel_values<C>(bias, channels, C(-0.0));
}

template <typename C>
std::vector<C> baseline_values(const std::optional<Tensor>& baseline,
                               int64_t channels) {
  return channel_values<C>(baseline, channels, C(0));
}

// How a loop reads the gate of its i-th element: one value for all, or one
// each.
template <typename C>
struct ConstantGate {
  C value;
  C operator()(int64_t) const { return value; }
};

template <typename G, typename C>
struct PointerGate {
  const G* values;
  C operator()(int64_t i) const { return static_cast<C>(values[i]); }
};

}  // namespace pathways
