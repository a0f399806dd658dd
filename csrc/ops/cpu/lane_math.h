#pragma once

// Activations and their derivatives on lanes: what core/activations.h computes
// one number at a time. In float, exp and expm1 are off by at most 2 units in
// the last place and erf by 3; the polynomials are our own minimax fits. In
// double, every lane calls the C library.

#include <cmath>

#include "../../core/activations.h"
#include "lanes.h"

namespace pathways {
namespace PATHWAYS_VARIANT {
namespace {

template <typename Function>
PATHWAYS_LANES Lanes<double> each(const Lanes<double>& x, Function function) {
  double values[Lanes<double>::kCount];
  store(values, x);
  for (double& value : values) {
    value = function(value);
  }
  return load(values);
}

// p(r) = (e^r - 1 - r) / r^2 for |r| <= ln(2) / 2, relative error of e^r 4e-9.
PATHWAYS_LANES Lanes<float> expm1_of_rest(const Lanes<float>& r) {
  Lanes<float> p = all(0.0013952972f);
  p = p * r + all(0.0083703213f);
  p = p * r + all(0.0416661680f);
  p = p * r + all(0.1666650670f);
  p = p * r + all(0.5f);
  return p * (r * r) + r;
}

// x = n ln(2) + r with an integer n.
struct Reduced {
  Lanes<float> n;
  Lanes<float> r;
};

PATHWAYS_LANES Reduced reduce(const Lanes<float>& x) {
  // Adding 1.5 * 2^23 rounds to an integer.
  const Lanes<float> shift = all(12582912.0f);
  Reduced result;
  result.n = (x * all(1.44269504f) + shift) - shift;
  result.r =
      (x - result.n * all(0.693359375f)) + result.n * all(2.12194440e-4f);
  return result;
}

// 2^n for an integer n in [-126, 127].
PATHWAYS_LANES Lanes<float> power_of_two(const Lanes<float>& n) {
  Lanes<uint32_t> bits;
  for (int p = 0; p < kParts; ++p) {
    const auto whole =
        __builtin_convertvector(n.part[p], Lanes<int32_t>::Register);
    bits.part[p] =
        reinterpret_cast<Lanes<uint32_t>::Register>((whole + 127) << 23);
  }
  return bit_cast<float>(bits);
}

template <typename T>
PATHWAYS_LANES Lanes<T> clamp(const Lanes<T>& x, T low, T high) {
  // NaN compares false and stays.
  const Lanes<T> above = select(x < all(low), all(low), x);
  return select(above > all(high), all(high), above);
}

PATHWAYS_LANES Lanes<float> exp(const Lanes<float>& x) {
  const Reduced reduced = reduce(clamp(x, -104.0f, 89.0f));
  // 2^n in two steps: n = 128 is not a float, and n < -126 not a normal one.
  const Lanes<float> shift = all(12582912.0f);
  const Lanes<float> half = (reduced.n * all(0.5f) + shift) - shift;
  const Lanes<float> value = expm1_of_rest(reduced.r) + all(1.0f);
  return value * power_of_two(half) * power_of_two(reduced.n - half);
}

PATHWAYS_LANES Lanes<double> exp(const Lanes<double>& x) {
  return each(x, [](double value) { return ::exp(value); });
}

// e^x - 1 for x <= 0, exact to the last places near 0 too.
PATHWAYS_LANES Lanes<float> expm1_negative(const Lanes<float>& x) {
  const Reduced reduced = reduce(clamp(x, -80.0f, 0.0f));
  const Lanes<float> scale = power_of_two(reduced.n);
  return expm1_of_rest(reduced.r) * scale + (scale - all(1.0f));
}

PATHWAYS_LANES Lanes<double> expm1_negative(const Lanes<double>& x) {
  return each(x, [](double value) { return ::expm1(value); });
}

// x P(x^2) / Q(x^2) for |x| <= 4, where erf is 1 to the last place.
PATHWAYS_LANES Lanes<float> erf(const Lanes<float>& x) {
  const Lanes<float> t = clamp(x, -4.0f, 4.0f);
  const Lanes<float> s = t * t;
  Lanes<float> p = all(1.9868116396537516e-06f);
  p = p * s + all(0.00028456462314352393f);
  p = p * s + all(0.0038832437712699175f);
  p = p * s + all(0.05310142785310745f);
  p = p * s + all(0.19354258477687836f);
  p = p * s + all(1.1283791065216064f);
  Lanes<float> q = all(3.7420417356770486e-05f);
  q = q * s + all(0.001185548841021955f);
  q = q * s + all(0.015207045711576939f);
  q = q * s + all(0.11534898728132248f);
  q = q * s + all(0.504855215549469f);
  q = q * s + all(1.0f);
  return clamp(t * p / q, -1.0f, 1.0f);
}

PATHWAYS_LANES Lanes<double> erf(const Lanes<double>& x) {
  return each(x, [](double value) { return ::erf(value); });
}

template <Activation kAct, typename T>
PATHWAYS_LANES Lanes<T> activate(const Lanes<T>& x) {
  if constexpr (kAct == Activation::kRelu) {
    return select(x < all(T(0)), all(T(0)), x);
  } else if constexpr (kAct == Activation::kRelu6) {
    return clamp(x, T(0), T(6));
  } else if constexpr (kAct == Activation::kSilu) {
    return x / (all(T(1)) + exp(-x));
  } else if constexpr (kAct == Activation::kGelu) {
    return x * all(T(0.5)) *
           (all(T(1)) + erf(x * all(T(0.70710678118654752440))));
  } else {
    return x;
  }
}

// The activation at x and its derivative there, which share most of the work.
template <typename T>
struct Tangent {
  Lanes<T> value;
  Lanes<T> slope;
};

template <Activation kAct, typename T>
PATHWAYS_LANES Tangent<T> tangent(const Lanes<T>& x) {
  const Lanes<T> zero = all(T(0));
  const Lanes<T> one = all(T(1));
  if constexpr (kAct == Activation::kRelu) {
    return {activate<kAct>(x), select(x <= zero, zero, one)};
  } else if constexpr (kAct == Activation::kRelu6) {
    const Mask<T> flat = (x <= zero) | (x >= all(T(6)));
    return {activate<kAct>(x), select(flat, zero, one)};
  } else if constexpr (kAct == Activation::kSilu) {
    const Lanes<T> s = one / (one + exp(-x));
    return {x / (one + exp(-x)), s * (one + x * (one - s))};
  } else if constexpr (kAct == Activation::kGelu) {
    const Lanes<T> cdf =
        all(T(0.5)) * (one + erf(x * all(T(0.70710678118654752440))));
    const Lanes<T> pdf =
        all(T(0.39894228040143267794)) * exp(all(T(-0.5)) * x * x);
    return {activate<kAct>(x), cdf + x * pdf};
  } else {
    return {x, one};
  }
}

}  // namespace
}  // namespace PATHWAYS_VARIANT
}  // namespace pathways
