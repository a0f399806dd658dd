#pragma once

// From a dtype of torch to a template parameter.

#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "../check.h"

namespace pathways {

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
