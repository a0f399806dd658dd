#pragma once

#include <cstdint>

#include "../../core/element_type.h"
#include "variant.h"

namespace pathways {

struct BinarizeLoops {
  // Hard thresholds of `count` numbers. Returns false when one of them is NaN.
  bool (*forward)(ElementType type, const void* importance, void* mask,
                  int64_t count);
  // grad times the derivative at importance.
  void (*backward)(ElementType type, const void* grad, const void* importance,
                   void* result, int64_t count, double inverse_variance,
                   double scale);
};

PATHWAYS_VARIANT_TABLE(BinarizeLoops, binarize_loops);

}  // namespace pathways
