// Element types of the floating-point kernels. Arithmetic is done in float for
// the 16-bit types and in the type itself otherwise. The gate may have another
// type than the activations; it is told apart at run time, because a template
// parameter would multiply the kernels and the branch is the same for all
// threads.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "common.cuh"

namespace pathways::cuda {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

template <class T>
struct Compute {
  using Type = float;
};
template <>
struct Compute<double> {
  using Type = double;
};
template <class T>
using ComputeOf = typename Compute<T>::Type;

// Calls function.template operator()<T>() for a floating-point type.
template <class Function>
void with_floating_type(ElementType type, const Function& function) {
  switch (type) {
    case ElementType::kDouble: return function.template operator()<double>();
    case ElementType::kHalf: return function.template operator()<Half>();
    case ElementType::kBFloat16:
      return function.template operator()<BFloat16>();
    default: return function.template operator()<float>();
  }
}

template <class Acc, class From>
__device__ __forceinline__ Acc to_compute(From value) {
  if constexpr (sizeof(From) == 2)
    return static_cast<Acc>(static_cast<float>(value));
  else if constexpr (sizeof(From) == 1)
    return value != 0 ? Acc(1) : Acc(0);
  else
    return static_cast<Acc>(value);
}

template <class To, class Acc>
__device__ __forceinline__ To from_compute(Acc value) {
  if constexpr (sizeof(To) == 2)
    return static_cast<To>(static_cast<float>(value));
  else
    return static_cast<To>(value);
}

template <class Acc>
__device__ __forceinline__ Acc load_element(const ConstElements& from,
                                            int64_t index) {
  switch (from.type) {
    case ElementType::kFloat:
      return to_compute<Acc>(static_cast<const float*>(from.data)[index]);
    case ElementType::kDouble:
      return to_compute<Acc>(static_cast<const double*>(from.data)[index]);
    case ElementType::kHalf:
      return to_compute<Acc>(static_cast<const Half*>(from.data)[index]);
    case ElementType::kBFloat16:
      return to_compute<Acc>(static_cast<const BFloat16*>(from.data)[index]);
    default:
      return to_compute<Acc>(static_cast<const uint8_t*>(from.data)[index]);
  }
}

// `count` elements from `index` on; with `aligned`, index is a multiple of
// count and the data 16-byte aligned, so that whole vectors can be read.
template <class From, class Acc, int count>
__device__ __forceinline__ void load_elements_as(const void* data,
                                                 int64_t index, bool aligned,
                                                 Acc (&to)[count]) {
  constexpr int kFit = kVectorBytes / sizeof(From);
  constexpr int kPiece = kFit < count ? kFit : count;
  const From* from = static_cast<const From*>(data) + index;
  if (aligned) {
#pragma unroll
    for (int first = 0; first < count; first += kPiece) {
      const auto piece = load_vector<From, kPiece>(from + first);
#pragma unroll
      for (int k = 0; k < kPiece; ++k)
        to[first + k] = to_compute<Acc>(piece.value[k]);
    }
  } else {
#pragma unroll
    for (int k = 0; k < count; ++k)
      to[k] = to_compute<Acc>(from[k]);
  }
}

template <class Acc, int count>
__device__ __forceinline__ void load_elements(const ConstElements& from,
                                              int64_t index, bool aligned,
                                              Acc (&to)[count]) {
  switch (from.type) {
    case ElementType::kFloat:
      return load_elements_as<float>(from.data, index, aligned, to);
    case ElementType::kDouble:
      return load_elements_as<double>(from.data, index, aligned, to);
    case ElementType::kHalf:
      return load_elements_as<Half>(from.data, index, aligned, to);
    case ElementType::kBFloat16:
      return load_elements_as<BFloat16>(from.data, index, aligned, to);
    default: return load_elements_as<uint8_t>(from.data, index, aligned, to);
  }
}

// Gradients are never bool.
template <class Acc>
__device__ __forceinline__ void store_element(const Elements& to, int64_t index,
                                              Acc value) {
  switch (to.type) {
    case ElementType::kFloat:
      static_cast<float*>(to.data)[index] = from_compute<float>(value);
      return;
    case ElementType::kDouble:
      static_cast<double*>(to.data)[index] = from_compute<double>(value);
      return;
    case ElementType::kHalf:
      static_cast<Half*>(to.data)[index] = from_compute<Half>(value);
      return;
    default:
      static_cast<BFloat16*>(to.data)[index] = from_compute<BFloat16>(value);
      return;
  }
}

template <class To, class Acc, int count>
__device__ __forceinline__ void store_elements_as(void* data, int64_t index,
                                                  bool aligned,
                                                  const Acc (&from)[count]) {
  constexpr int kFit = kVectorBytes / sizeof(To);
  constexpr int kPiece = kFit < count ? kFit : count;
  To* to = static_cast<To*>(data) + index;
  if (aligned) {
#pragma unroll
    for (int first = 0; first < count; first += kPiece) {
      Vector<To, kPiece> piece;
#pragma unroll
      for (int k = 0; k < kPiece; ++k)
        piece.value[k] = from_compute<To>(from[first + k]);
      store_vector(to + first, piece);
    }
  } else {
#pragma unroll
    for (int k = 0; k < count; ++k)
      to[k] = from_compute<To>(from[k]);
  }
}

template <class Acc, int count>
__device__ __forceinline__ void store_elements(const Elements& to,
                                               int64_t index, bool aligned,
                                               const Acc (&from)[count]) {
  switch (to.type) {
    case ElementType::kFloat:
      return store_elements_as<float>(to.data, index, aligned, from);
    case ElementType::kDouble:
      return store_elements_as<double>(to.data, index, aligned, from);
    case ElementType::kHalf:
      return store_elements_as<Half>(to.data, index, aligned, from);
    default: return store_elements_as<BFloat16>(to.data, index, aligned, from);
  }
}

}  // namespace pathways::cuda
