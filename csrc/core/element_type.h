#pragma once

// Element types by name, for kernels that must not see a torch header.

#include <cstdint>
#include <type_traits>

namespace pathways {

enum class ElementType : int32_t { kFloat, kDouble, kHalf, kBFloat16, kBool };

// Of a floating type.
constexpr int64_t element_bytes(ElementType type) {
  return type == ElementType::kDouble ? 8 : type == ElementType::kFloat ? 4 : 2;
}

// A type as a value, to be handed to a generic lambda.
template <typename T>
struct TypeTag {
  using type = T;
};

// What a floating type is computed in: float for everything narrower than
// double.
template <typename T>
using ComputeType =
    std::conditional_t<std::is_same_v<T, double>, double, float>;

}  // namespace pathways
