#pragma once

// Activations of a gated site and their derivatives, for T = float or double
// (narrower types are computed in float). NaN propagates as in torch: relu(NaN)
// = NaN, and the derivative of relu and relu6 at NaN is 1.

#include <cmath>
#include <cstdint>

#include "macros.h"

namespace pathways {

enum class Activation : int32_t {
  kNone = 0,
  kRelu = 1,
  kRelu6 = 2,
  kSilu = 3,
  kGelu = 4
};

constexpr int32_t kActivationCount = 5;
// Index of a name is the value of the enumerator.
constexpr const char* kActivationNames[kActivationCount] = {
    "none", "relu", "relu6", "silu", "gelu"};

namespace detail {
PATHWAYS_HOST_DEVICE inline float exp_of(float x) {
  return expf(x);
}
PATHWAYS_HOST_DEVICE inline double exp_of(double x) {
  return exp(x);
}
PATHWAYS_HOST_DEVICE inline float erf_of(float x) {
  return erff(x);
}
PATHWAYS_HOST_DEVICE inline double erf_of(double x) {
  return erf(x);
}
}  // namespace detail

template <Activation kAct, typename T>
PATHWAYS_HOST_DEVICE inline T activate(T x) {
  if constexpr (kAct == Activation::kRelu) {
    return x < T(0) ? T(0) : x;
  } else if constexpr (kAct == Activation::kRelu6) {
    return x < T(0) ? T(0) : (x > T(6) ? T(6) : x);
  } else if constexpr (kAct == Activation::kSilu) {
    return x / (T(1) + detail::exp_of(-x));
  } else if constexpr (kAct == Activation::kGelu) {
    return x * T(0.5) * (T(1) + detail::erf_of(x * T(0.70710678118654752440)));
  } else {
    return x;
  }
}

template <Activation kAct, typename T>
PATHWAYS_HOST_DEVICE inline T activation_derivative(T x) {
  if constexpr (kAct == Activation::kRelu) {
    return x <= T(0) ? T(0) : T(1);
  } else if constexpr (kAct == Activation::kRelu6) {
    return (x <= T(0) || x >= T(6)) ? T(0) : T(1);
  } else if constexpr (kAct == Activation::kSilu) {
    const T s = T(1) / (T(1) + detail::exp_of(-x));
    return s * (T(1) + x * (T(1) - s));
  } else if constexpr (kAct == Activation::kGelu) {
    const T cdf =
        T(0.5) * (T(1) + detail::erf_of(x * T(0.70710678118654752440)));
    const T pdf = T(0.39894228040143267794) * detail::exp_of(T(-0.5) * x * x);
    return cdf + x * pdf;
  } else {
    return T(1);
  }
}

// One gated neuron: exactly `baseline` when the gate is 0, whatever `x` holds
// (NaN and infinity do not leak); exactly act(x + bias) when the gate is 1; the
// mixture of both otherwise.
template <Activation kAct, typename T>
PATHWAYS_HOST_DEVICE inline T gate_value(T x, T gate, T bias, T baseline) {
  if (gate == T(0)) {
    return baseline;
  }
  const T value = activate<kAct>(x + bias);
  return gate == T(1) ? value : gate * value + (T(1) - gate) * baseline;
}

// Factors of one neuron in the backward pass, for an incoming gradient `grad`:
//   grad_x = grad * gate * act'(x + bias), exactly 0 when the gate is 0;
//   grad_gate = grad * (act(x + bias) - baseline).
// grad_bias is the sum of grad_x over everything that shares the bias.
template <Activation kAct, typename T>
PATHWAYS_HOST_DEVICE inline T gate_grad_x(T grad, T x, T gate, T bias) {
  return gate == T(0) ? T(0)
                      : grad * gate * activation_derivative<kAct>(x + bias);
}

template <Activation kAct, typename T>
PATHWAYS_HOST_DEVICE inline T gate_grad_gate(T grad, T x, T bias, T baseline) {
  return grad * (activate<kAct>(x + bias) - baseline);
}

}  // namespace pathways
