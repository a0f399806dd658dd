// How the gated kernels see their tensors. All data is one dense run; element
// i has three digits (see Radix): [N][C][space] in channel-first order,
// [N][space][C] with the channel innermost.
#pragma once

#include "elements.cuh"

namespace pathways::cuda {

inline Radix radix_of(const GatedShape& shape) {
  return shape.channel_innermost ? Radix{shape.space, shape.channels}
                                 : Radix{shape.channels, shape.space};
}

enum class GateMode {
  kRow,      // channel-first: one gate for a run of `space` elements
  kChannel,  // channel innermost: neighbouring elements, neighbouring gates
  kUnit,
};

inline GateMode gate_mode(const GatedShape& shape) {
  if (shape.unit)
    return GateMode::kUnit;
  return shape.channel_innermost ? GateMode::kChannel : GateMode::kRow;
}

// An absent bias is -0, the value that changes nothing when it is added, the
// sign of a zero included.
template <class Acc>
__device__ __forceinline__ Acc bias_at(const Acc* bias, int64_t channel) {
  return bias ? bias[channel] : Acc(-0.0);
}

template <class Acc>
__device__ __forceinline__ Acc baseline_at(const Acc* baseline,
                                           int64_t channel) {
  return baseline ? baseline[channel] : Acc(0);
}

// The values of `count` neighbouring channels, `absent` without a vector;
// `aligned` as for load_elements.
template <class Acc, int count>
__device__ __forceinline__ void load_channels(const Acc* from, int64_t channel,
                                              bool aligned, Acc absent,
                                              Acc (&to)[count]) {
  if (from) {
    load_elements_as<Acc>(from, channel, aligned, to);
  } else {
#pragma unroll
    for (int k = 0; k < count; ++k)
      to[k] = absent;
  }
}

// Calls body.template operator()<activation>(). One branch for all threads,
// taken once for a vector: around whole kernels it would cost five copies of
// the address arithmetic.
template <class Body>
__device__ __forceinline__ void with_activation(Activation activation,
                                                const Body& body) {
  switch (activation) {
    case Activation::kNone:
      return body.template operator()<Activation::kNone>();
    case Activation::kRelu:
      return body.template operator()<Activation::kRelu>();
    case Activation::kRelu6:
      return body.template operator()<Activation::kRelu6>();
    case Activation::kSilu:
      return body.template operator()<Activation::kSilu>();
    default: return body.template operator()<Activation::kGelu>();
  }
}

}  // namespace pathways::cuda
