#pragma once

#include <cstdint>

#include "variant.h"

namespace pathways {

// How numbers lie in memory, as far as being zero goes.
struct NumberFormat {
  int64_t bytes;     // 1, 2, 4 or 8
  bool signed_zero;  // the highest bit does not matter
};

struct PackBitsLoops {
  // `size` numbers, `stride` numbers apart, to words. Tail bits are zero.
  void (*pack)(NumberFormat format, const void* numbers, int64_t stride,
               int64_t size, uint64_t* words);
  // Words to `size` bytes of 0 or 1.
  void (*unpack)(const uint64_t* words, int64_t size, uint8_t* bytes);
};

PATHWAYS_VARIANT_TABLE(PackBitsLoops, pack_bits_loops);

}  // namespace pathways
