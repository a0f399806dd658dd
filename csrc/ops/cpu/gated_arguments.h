#pragma once

// Arguments of the gated CPU kernels in the form the loops want: everything in
// the memory order of x, and the channel vectors in the compute type.

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <optional>
#include <vector>

#include "../check.h"
#include "../stable.h"
#include "dispatch.h"
#include "gated_loops.h"

namespace pathways {

// Elements per task, about 5 us of work: above the cost of waking a thread.
inline int64_t gated_grain(Activation activation) {
  const bool exponentials =
      activation == Activation::kSilu || activation == Activation::kGelu;
  return exponentials ? 1 << 14 : 1 << 16;
}

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
  if (!plan.shape.unit) {
    return contiguous_as(gate, compute);
  }
  const ScalarType type = gate.scalar_type();
  return in_layout_of(gate, x,
                      type == ScalarType::Bool || type == x.scalar_type()
                          ? x.scalar_type()
                          : compute);
}

// With channels innermost, the length to which channel vectors are repeated: a
// multiple of 16 lanes and long enough for a loop, unless they would then leave
// the first cache.
inline int64_t period_of(const GatedShape& shape) {
  constexpr int64_t kLongest = 2048;
  constexpr int64_t kEnough = 512;
  const int64_t whole = std::lcm(shape.channels, int64_t{16});
  if (!shape.channel_innermost || whole == 0 || whole > kLongest) {
    return shape.channels;
  }
  return whole * std::max<int64_t>(1, kEnough / whole);
}

// Owns what a GatedCall points to. `input` is dense.
class GatedArguments {
 public:
  GatedArguments(const GatedPlan& plan, const Tensor& input, const Tensor& gate,
                 const std::optional<Tensor>& bias,
                 const std::optional<Tensor>& baseline)
      : shape_(plan.shape.folded()),
        period_(period_of(shape_)),
        type_(input.scalar_type()),
        activation_(plan.activation),
        bare_(!bias.has_value() && !baseline.has_value()),
        input_(input),
        gate_(gate_for(gate, input, plan)),
        // Adding -0 changes no number, not even the sign of a zero, so it
        // stands for an absent bias.
        bias_(channel_vector(bias, -0.0)),
        baseline_(channel_vector(baseline, 0.0)) {
    if (!shape_.unit && period_ != shape_.channels) {
      repeated_gate_ =
          repeated(gate_, shape_.per_input ? shape_.batch : int64_t{1});
    }
  }

  ScalarType gate_type() const { return gate_.scalar_type(); }

  // Whether every channel gate is 0 or 1.
  bool is_hard() const {
    return !shape_.unit && (type_ == ScalarType::Double ? is_hard_as<double>()
                                                        : is_hard_as<float>());
  }

  void fill(GatedCall* call) const {
    call->type = element_type(type_);
    call->gate_type = element_type(gate_.scalar_type());
    call->activation = activation_;
    call->shape = shape_;
    call->period = period_;
    call->x = input_.const_data_ptr();
    call->gate =
        repeated_gate_.empty() ? gate_.const_data_ptr() : repeated_gate_.data();
    call->bias = bias_.data();
    call->baseline = baseline_.data();
    call->bare = bare_;
  }

 private:
  template <typename C>
  bool is_hard_as() const {
    const C* gate = static_cast<const C*>(gate_.const_data_ptr());
    return std::all_of(gate, gate + gate_.numel(),
                       [](C value) { return value == C(0) || value == C(1); });
  }

  // Numbers of the compute type, as bytes. On a boundary of lanes: half of the
  // loads of a loop over channels are of gates.
  struct alignas(64) Line {
    char bytes[64];
  };
  using Numbers = std::vector<Line>;

  static Numbers room_for(int64_t bytes) {
    constexpr int64_t kLine = sizeof(Line);
    return Numbers(static_cast<size_t>((bytes + kLine - 1) / kLine));
  }

  int64_t compute_bytes() const {
    return type_ == ScalarType::Double ? sizeof(double) : sizeof(float);
  }

  // [rows, C] to [rows, period].
  Numbers repeated(const Tensor& source, int64_t rows) const {
    const int64_t bytes = compute_bytes();
    const int64_t row_bytes = shape_.channels * bytes;
    const int64_t times = row_bytes == 0 ? 0 : period_ / shape_.channels;
    const char* from = static_cast<const char*>(source.const_data_ptr());
    Numbers numbers = room_for(rows * period_ * bytes);
    char* to = reinterpret_cast<char*>(numbers.data());
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t k = 0; k < times; ++k, to += row_bytes) {
        std::copy(from + row * row_bytes, from + (row + 1) * row_bytes, to);
      }
    }
    return numbers;
  }

  Numbers channel_vector(const std::optional<Tensor>& vector,
                         double otherwise) const {
    if (vector.has_value()) {
      return repeated(contiguous_as(*vector, compute_type(type_)), 1);
    }
    Numbers numbers = room_for(period_ * compute_bytes());
    if (type_ == ScalarType::Double) {
      std::fill_n(reinterpret_cast<double*>(numbers.data()), period_,
                  otherwise);
    } else {
      std::fill_n(reinterpret_cast<float*>(numbers.data()), period_,
                  static_cast<float>(otherwise));
    }
    return numbers;
  }

  GatedShape shape_;
  int64_t period_;
  ScalarType type_;
  Activation activation_;
  bool bare_;
  Tensor input_;
  Tensor gate_;
  Numbers bias_;
  Numbers baseline_;
  Numbers repeated_gate_;
};

}  // namespace pathways
