#pragma once

// From run-time values (dtype, activation) to template parameters.

#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <type_traits>
#include <utility>

#include "../check.h"
#include "element_type.h"

namespace pathways {

template <typename T>
struct TypeTag {
  using type = T;
};

// The checks have refused every other type.
inline ElementType element_type(ScalarType type) {
  switch (type) {
    case ScalarType::Double: return ElementType::kDouble;
    case ScalarType::BFloat16: return ElementType::kBFloat16;
    case ScalarType::Half: return ElementType::kHalf;
    default: return ElementType::kFloat;
  }
}

// float for everything narrower than double.
template <typename T>
using ComputeType =
    std::conditional_t<std::is_same_v<T, double>, double, float>;

// Calls function(TypeTag<T>{}) for the floating type; the checks have refused
// every other.
template <typename Function>
void dispatch_floating(ScalarType type, Function&& function) {
  switch (type) {
    case ScalarType::Double: return function(TypeTag<double>{});
    case ScalarType::Float: return function(TypeTag<float>{});
    case ScalarType::BFloat16:
      return function(TypeTag<torch::headeronly::BFloat16>{});
    case ScalarType::Half: return function(TypeTag<torch::headeronly::Half>{});
    default: detail::fail("pathways: no kernel for dtype ", dtype_name(type));
  }
}

}  // namespace pathways
