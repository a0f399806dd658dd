#pragma once

// Distance-aware quantization to one bit: a hard threshold forward, and
// backward the closed form of the derivative of the softmax assignment of Kim,
// Lee, Ham, "Distance-aware Quantization", ICCV 2021 (arXiv:2108.06983), for
// the levels 0 and 1. Derived from the formulas of the paper:
//
//   dphi/dr = gamma / (2 sinh gamma) * (e^-t + k e^-(1-t)) / (e^-t - k
//   e^-(1-t)),  k = exp(-1 / sigma^2),
//
// with t the distance of r to the nearer level. Dividing both by the geometric
// mean of their terms turns the quotient into coth((1 / sigma^2 + 1 - 2t) / 2),
// and 1 - 2t is |2r - 1|: no cancellation for a large sigma.

#include <cmath>

#include "macros.h"

namespace pathways {

// Constants of one call, computed in double once on the host.
struct QuantizerConstants {
  double inverse_variance;  // 1 / sigma^2
  double scale;             // gamma / (2 sinh gamma)
};

inline QuantizerConstants quantizer_constants(double sigma, double gamma) {
  return {1.0 / (sigma * sigma), gamma / (2.0 * std::sinh(gamma))};
}

namespace detail {
PATHWAYS_HOST_DEVICE inline float tanh_of(float x) {
  return tanhf(x);
}
PATHWAYS_HOST_DEVICE inline double tanh_of(double x) {
  return tanh(x);
}
PATHWAYS_HOST_DEVICE inline float abs_of(float x) {
  return fabsf(x);
}
PATHWAYS_HOST_DEVICE inline double abs_of(double x) {
  return fabs(x);
}
}  // namespace detail

// 1 above one half, 0 otherwise: the tie at 0.5 goes to 0, as round-half-even
// does. Values outside [0, 1] are clamped, which the comparison does by itself.
// NaN stays NaN: the CPU kernel refuses it with a sentence, the CUDA kernel
// hands it on, because a check there would have to wait for the device.
template <typename T>
PATHWAYS_HOST_DEVICE inline T binarize_value(T importance) {
  return importance > T(0.5) ? T(1)
                             : (importance <= T(0.5) ? T(0) : importance);
}

// Derivative with respect to the importance; 0 outside [0, 1] (the clamp) and
// for NaN, positive and symmetric about 0.5 inside, largest at 0.5.
template <typename T>
PATHWAYS_HOST_DEVICE inline T binarize_derivative(T importance,
                                                  T inverse_variance, T scale) {
  if (!(importance >= T(0) && importance <= T(1))) {
    return T(0);
  }
  const T distance = detail::abs_of(T(2) * importance - T(1));
  return scale / detail::tanh_of(T(0.5) * (inverse_variance + distance));
}

}  // namespace pathways
