#pragma once

// From an ElementType to the type that the lanes load and store. For
// <name>_loops.cpp files only (variant.h).

#include "../../core/element_type.h"
#include "narrow_lanes.h"

namespace pathways {
namespace PATHWAYS_VARIANT {
namespace {

// Calls function(TypeTag<T>{}).
template <typename Function>
PATHWAYS_LANES auto with_type(ElementType type, Function function) {
  switch (type) {
    case ElementType::kDouble: return function(TypeTag<double>{});
    case ElementType::kHalf: return function(TypeTag<Float16>{});
    case ElementType::kBFloat16: return function(TypeTag<BFloat16>{});
    default: return function(TypeTag<float>{});
  }
}

}  // namespace
}  // namespace PATHWAYS_VARIANT
}  // namespace pathways
