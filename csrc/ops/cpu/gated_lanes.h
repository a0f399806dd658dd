#pragma once

// What the loops of gated_forward and _gated_backward share. For
// <name>_loops.cpp files only (variant.h).
//
// The arithmetic exists for float and double only. Narrow types pass through
// buffers of kBlock floats, which stay in the first cache: a third and fourth
// copy of every loop would not be faster, only longer to compile.

#include "gated_loops.h"
#include "lane_math.h"
#include "lane_types.h"

namespace pathways {
namespace PATHWAYS_VARIANT {
namespace {

constexpr int64_t kBlock = kSumChunk;

template <typename T>
constexpr bool kNarrow = !std::is_same_v<T, ComputeType<T>>;

// `count` numbers of a narrow type to float, or of float rounded to one.
template <typename From, typename To>
PATHWAYS_LANES void convert(const From* from, To* to, int64_t count) {
  int64_t i = 0;
  for (; i + Lanes<float>::kCount <= count; i += Lanes<float>::kCount) {
    store(to + i, load(from + i));
  }
  if (i < count) {
    store_part(to + i, load_part(from + i, count - i), count - i);
  }
}

// `count` numbers of the compute type: `from` itself, or a copy in `buffer`.
template <typename T>
PATHWAYS_LANES const ComputeType<T>* widened(const T* from, int64_t count,
                                             ComputeType<T>* buffer) {
  if constexpr (kNarrow<T>) {
    convert(from, buffer, count);
    return buffer;
  } else {
    return from;
  }
}

// A unit gate has the type of x or its compute type.
template <typename T>
PATHWAYS_LANES const ComputeType<T>* widened_gate(const GatedCall& call,
                                                  int64_t at, int64_t count,
                                                  ComputeType<T>* buffer) {
  if constexpr (kNarrow<T>) {
    if (call.gate_type == call.type) {
      return widened(static_cast<const T*>(call.gate) + at, count, buffer);
    }
  }
  return static_cast<const ComputeType<T>*>(call.gate) + at;
}

// The entry of a table of functions with one for each activation.
template <template <Activation> class Row>
PATHWAYS_LANES auto row_of(Activation activation) {
  switch (activation) {
    case Activation::kRelu: return &Row<Activation::kRelu>::run;
    case Activation::kRelu6: return &Row<Activation::kRelu6>::run;
    case Activation::kSilu: return &Row<Activation::kSilu>::run;
    case Activation::kGelu: return &Row<Activation::kGelu>::run;
    default: return &Row<Activation::kNone>::run;
  }
}

}  // namespace
}  // namespace PATHWAYS_VARIANT
}  // namespace pathways
