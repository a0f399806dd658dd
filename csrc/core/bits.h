#pragma once

// Bit sets of D neurons: 64-bit words, neuron d in bit d % 64 of word d / 64,
// tail bits zero. Counts are exact up to 2^63 - 1; one intersection or union
// over a row is exact in int32_t up to 2^31 - 1 neurons.

#include <cstdint>

#include "macros.h"

namespace pathways {

constexpr int64_t kWordBits = 64;

// Number of words that hold `size` bits.
PATHWAYS_HOST_DEVICE constexpr int64_t word_count(int64_t size) {
  return size / kWordBits + (size % kWordBits != 0 ? 1 : 0);
}

// Bits of the last word that belong to the set; all ones when `size` is a
// multiple of 64.
PATHWAYS_HOST_DEVICE constexpr uint64_t tail_mask(int64_t size) {
  const int64_t used = size % kWordBits;
  return used == 0 ? ~uint64_t{0} : (uint64_t{1} << used) - 1;
}

PATHWAYS_HOST_DEVICE inline int popcount64(uint64_t word) {
#if defined(__CUDA_ARCH__)
  return __popcll(word);
#else
  return __builtin_popcountll(word);
#endif
}

PATHWAYS_HOST_DEVICE constexpr bool get_bit(uint64_t word, int64_t bit) {
  return ((word >> bit) & 1u) != 0;
}

// Intersection over union from counts. Two empty sets are identical, hence 1.
// The counts convert to double exactly up to 2^53, and the division is the only
// rounding.
PATHWAYS_HOST_DEVICE constexpr double iou_from_counts(int64_t intersection,
                                                      int64_t size_a,
                                                      int64_t size_b) {
  const int64_t joined = size_a + size_b - intersection;
  return joined == 0
             ? 1.0
             : static_cast<double>(intersection) / static_cast<double>(joined);
}

// The same as float: one correctly rounded float32 division, as `inter.float()
// / union.float()` gives it. Exact inputs up to 2^24 neurons; above, the counts
// themselves are rounded first.
PATHWAYS_HOST_DEVICE constexpr float iou_from_counts_float(int64_t intersection,
                                                           int64_t size_a,
                                                           int64_t size_b) {
  const int64_t joined = size_a + size_b - intersection;
  return joined == 0
             ? 1.0f
             : static_cast<float>(intersection) / static_cast<float>(joined);
}

// Rows of `size` bytes, nonzero = 1, to packed rows and back, contiguous on
// both sides.
template <typename Byte>
inline void pack_rows(const Byte* bits, uint64_t* words, int64_t rows,
                      int64_t size) {
  static_assert(sizeof(Byte) == 1);
  const int64_t width = word_count(size);
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t w = 0; w < width; ++w) {
      const int64_t first = w * kWordBits;
      const int64_t count = size - first < kWordBits ? size - first : kWordBits;
      uint64_t word = 0;
      for (int64_t bit = 0; bit < count; ++bit) {
        word |= static_cast<uint64_t>(bits[row * size + first + bit] != Byte(0))
                << bit;
      }
      words[row * width + w] = word;
    }
  }
}

template <typename Byte>
inline void unpack_rows(const uint64_t* words, Byte* bits, int64_t rows,
                        int64_t size) {
  static_assert(sizeof(Byte) == 1);
  const int64_t width = word_count(size);
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t d = 0; d < size; ++d) {
      bits[row * size + d] = static_cast<Byte>(
          get_bit(words[row * width + d / kWordBits], d % kWordBits));
    }
  }
}

}  // namespace pathways
