#pragma once

// Floating types by name, for loops that must not see a torch header.

#include <cstdint>

namespace pathways {

enum class ElementType : int32_t { kFloat, kDouble, kHalf, kBFloat16 };

constexpr int64_t element_bytes(ElementType type) {
  return type == ElementType::kDouble ? 8 : type == ElementType::kFloat ? 4 : 2;
}

}  // namespace pathways
