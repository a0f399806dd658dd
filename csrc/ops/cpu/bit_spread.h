#pragma once

// From 64 bits to 64 bytes and back. For <name>_loops.cpp files only
// (variant.h).

#include "lanes.h"

namespace pathways {
namespace PATHWAYS_VARIANT {
namespace {

using Bytes = Lanes<uint8_t>;
static_assert(Bytes::kCount == 64);

// Bit i as 0 or 1 in byte i.
PATHWAYS_LANES Bytes spread(uint64_t word) {
#if defined(__AVX512BW__)
  using Part = Bytes::Register;
  return {{reinterpret_cast<Part>(
      _mm512_maskz_mov_epi8(word, _mm512_set1_epi8(1)))}};
#elif defined(__AVX2__)
  // Byte i / 8 of the word in every byte i, and of that only bit i % 8.
  const __m256i bit =
      _mm256_set1_epi64x(static_cast<long long>(0x8040201008040201));
  const __m256i copies = _mm256_set1_epi64x(static_cast<long long>(word));
  const __m256i low = _mm256_setr_epi64x(
      0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
  const __m256i high = _mm256_add_epi8(low, _mm256_set1_epi8(4));
  const auto part = [&](const __m256i& from) {
    const __m256i bytes = _mm256_shuffle_epi8(copies, from);
    const __m256i set = _mm256_cmpeq_epi8(_mm256_and_si256(bytes, bit), bit);
    return reinterpret_cast<Bytes::Register>(
        _mm256_and_si256(set, _mm256_set1_epi8(1)));
  };
  return {{part(low), part(high)}};
#else
  uint64_t bytes[8];
  for (int i = 0; i < 8; ++i) {
    // Each of the eight bits in a byte of its own, where it carries into the
    // highest bit.
    const uint64_t bit =
        ((word >> (8 * i)) & 0xff) * 0x0101010101010101 & 0x8040201008040201;
    bytes[i] = ((bit + 0x7f7f7f7f7f7f7f7f) >> 7) & 0x0101010101010101;
  }
  Bytes result;
  std::memcpy(&result, bytes, sizeof(result));
  return result;
#endif
}

// Which of 64 numbers are not zero, where only the bits of `significant` count:
// all of them, or all but the sign.
template <typename T>
PATHWAYS_LANES uint64_t nonzero(const T* from, T significant) {
  uint64_t word = 0;
#if defined(__AVX512BW__)
  constexpr int kStep = 64 / static_cast<int>(sizeof(T));
  for (int i = 0; i < 64; i += kStep) {
    const __m512i value = _mm512_loadu_si512(from + i);
    if constexpr (sizeof(T) == 1) {
      return _mm512_test_epi8_mask(value, value);
    } else if constexpr (sizeof(T) == 2) {
      const __m512i mask = _mm512_set1_epi16(static_cast<short>(significant));
      word |= uint64_t{_mm512_test_epi16_mask(value, mask)} << i;
    } else if constexpr (sizeof(T) == 4) {
      const __m512i mask = _mm512_set1_epi32(static_cast<int>(significant));
      word |= uint64_t{_mm512_test_epi32_mask(value, mask)} << i;
    } else {
      const __m512i mask =
          _mm512_set1_epi64(static_cast<long long>(significant));
      word |= uint64_t{_mm512_test_epi64_mask(value, mask)} << i;
    }
  }
#elif defined(__AVX2__)
  const __m256i zero = _mm256_setzero_si256();
  const auto load = [&](int i) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + i));
  };
  for (int i = 0; i < 64; i += 32) {
    uint64_t zeros = 0;
    if constexpr (sizeof(T) == 1) {
      zeros = static_cast<uint32_t>(
          _mm256_movemask_epi8(_mm256_cmpeq_epi8(load(i), zero)));
    } else if constexpr (sizeof(T) == 2) {
      const __m256i mask = _mm256_set1_epi16(static_cast<short>(significant));
      const auto compared = [&](int j) {
        return _mm256_cmpeq_epi16(_mm256_and_si256(load(i + j), mask), zero);
      };
      // Packing interleaves the halves of the two registers.
      const __m256i bytes = _mm256_permute4x64_epi64(
          _mm256_packs_epi16(compared(0), compared(16)), 0xd8);
      zeros = static_cast<uint32_t>(_mm256_movemask_epi8(bytes));
    } else if constexpr (sizeof(T) == 4) {
      const __m256i mask = _mm256_set1_epi32(static_cast<int>(significant));
      for (int j = 0; j < 32; j += 8) {
        const __m256i compared =
            _mm256_cmpeq_epi32(_mm256_and_si256(load(i + j), mask), zero);
        const int bits = _mm256_movemask_ps(_mm256_castsi256_ps(compared));
        zeros |= static_cast<uint64_t>(bits) << j;
      }
    } else {
      const __m256i mask =
          _mm256_set1_epi64x(static_cast<long long>(significant));
      for (int j = 0; j < 32; j += 4) {
        const __m256i compared =
            _mm256_cmpeq_epi64(_mm256_and_si256(load(i + j), mask), zero);
        const int bits = _mm256_movemask_pd(_mm256_castsi256_pd(compared));
        zeros |= static_cast<uint64_t>(bits) << j;
      }
    }
    word |= (zeros ^ 0xffffffff) << i;
  }
#else
  if constexpr (sizeof(T) == 1) {
    for (int i = 0; i < 64; i += 8) {
      uint64_t bytes;
      std::memcpy(&bytes, from + i, sizeof(bytes));
      // The highest bit of every byte that is not zero, gathered by a product
      // in which no two of them meet.
      const uint64_t carried =
          (bytes & 0x7f7f7f7f7f7f7f7f) + 0x7f7f7f7f7f7f7f7f;
      const uint64_t ones = ((carried | bytes) >> 7) & 0x0101010101010101;
      word |= ((ones * 0x0102040810204080) >> 56) << i;
    }
  } else {
    for (int i = 0; i < 64; ++i) {
      word |= uint64_t{(from[i] & significant) != 0} << i;
    }
  }
#endif
  return word;
}

}  // namespace
}  // namespace PATHWAYS_VARIANT
}  // namespace pathways
