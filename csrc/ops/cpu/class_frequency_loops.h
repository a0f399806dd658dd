#pragma once

#include <cstdint>

#include "bit_tile.h"
#include "variant.h"

namespace pathways {

// Words that one call counts at most.
constexpr int64_t kFrequencyWords = 64;

struct ClassFrequencyLoops {
  // Adds to counts[i] in how many of the rows bit i of `words` <=
  // kFrequencyWords words, the first of them first_word, is set; `bits` of them
  // at most.
  void (*add)(const BitMatrix& matrix, RowRange rows, int64_t first_word,
              int64_t words, int64_t bits, int64_t* counts);
};

PATHWAYS_VARIANT_TABLE(ClassFrequencyLoops, class_frequency_loops);

}  // namespace pathways
