#pragma once

// One vector register of packed words, as wide as the variant has them, and
// what the loops over bits do with it. For <name>_loops.cpp files only
// (variant.h).

#include <utility>

#include "lanes.h"

namespace pathways {
namespace PATHWAYS_VARIANT {
namespace {

using Words = RegisterOf<uint64_t, kRegisterBytes>::type;
constexpr int64_t kVectorWords = kRegisterBytes / 8;

PATHWAYS_LANES Words all_words(uint64_t word) {
  return Words{} + word;
}

PATHWAYS_LANES Words load_words(const uint64_t* from) {
  return load_register<Words>(from);
}

// The first `count` words, at least one; what lies behind them is not read and
// counts as zero.
PATHWAYS_LANES Words load_words(const uint64_t* from, int64_t count) {
  if (count >= kVectorWords) {
    return load_words(from);
  }
#if defined(__AVX512F__)
  const auto mask = static_cast<__mmask8>((1u << count) - 1u);
  return reinterpret_cast<Words>(_mm512_maskz_loadu_epi64(mask, from));
#else
  Words result = {};
  for (int64_t w = 0; w < count; ++w) {
    result[w] = from[w];
  }
  return result;
#endif
}

PATHWAYS_LANES void store_words(uint64_t* to, const Words& words) {
  store_register(to, words);
}

// --------------------------------------------------------------- transpose

// The second half of every run of 2 kDistance lanes of `a` changes places with
// the first half of that of b.
template <int64_t kDistance, typename Register, size_t... kLane>
PATHWAYS_LANES void exchange(Register& a, Register& b,
                             std::index_sequence<kLane...>) {
  constexpr auto kFrom = [](size_t lane, size_t half) {
    const size_t start =
        (lane & kDistance) != 0 ? sizeof...(kLane) + lane - kDistance : lane;
    return start + half * kDistance;
  };
#if defined(__clang__)
  const Register low = __builtin_shufflevector(a, b, kFrom(kLane, 0)...);
  const Register high = __builtin_shufflevector(a, b, kFrom(kLane, 1)...);
#else
  const Register low = __builtin_shuffle(a, b, Register{kFrom(kLane, 0)...});
  const Register high = __builtin_shuffle(a, b, Register{kFrom(kLane, 1)...});
#endif
  a = low;
  b = high;
}

// As many registers as each has lanes, rows and columns exchanged.
template <int64_t kLanes, int64_t kDistance, typename Register>
PATHWAYS_LANES void transpose_by(Register* rows) {
  if constexpr (kDistance > 0) {
    for (int64_t i = 0; i < kLanes; ++i) {
      if ((i & kDistance) == 0) {
        exchange<kDistance>(rows[i], rows[i + kDistance],
                            std::make_index_sequence<kLanes>{});
      }
    }
    transpose_by<kLanes, kDistance / 2>(rows);
  }
}

template <typename Register>
PATHWAYS_LANES void transpose(Register* rows) {
  constexpr int64_t kLanes = sizeof(Register) / sizeof(rows[0][0]);
  transpose_by<kLanes, kLanes / 2>(rows);
}

// ------------------------------------------------------------- carry and sum

PATHWAYS_LANES Words sum_of(const Words& a, const Words& b, const Words& c) {
#if defined(__AVX512F__)
  return reinterpret_cast<Words>(_mm512_ternarylogic_epi64(
      reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b),
      reinterpret_cast<__m512i>(c), 0x96));
#else
  return a ^ b ^ c;
#endif
}

// Where at least two of a, b and c are set, told from a, b and the sum of the
// three: c is needed only where a and b differ, and is the complement of the
// sum there.
PATHWAYS_LANES Words carry_of(const Words& a, const Words& b,
                              const Words& sum) {
#if defined(__AVX512F__)
  return reinterpret_cast<Words>(_mm512_ternarylogic_epi64(
      reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b),
      reinterpret_cast<__m512i>(sum), 0xd4));
#else
  return a ^ ((a ^ b) & (b ^ sum));
#endif
}

// ---------------------------------------------------------- counting bits

// Counts of the bits of a register in parts of it, which are as wide as the
// instruction makes them. Parts add up without overflow kMaxParts times, and
// parts_per_word adds those of each word.
#if defined(__AVX512VPOPCNTDQ__)
constexpr int64_t kMaxParts = int64_t{1} << 40;

PATHWAYS_LANES Words count_parts(const Words& words) {
  return reinterpret_cast<Words>(
      _mm512_popcnt_epi64(reinterpret_cast<__m512i>(words)));
}

PATHWAYS_LANES Words parts_per_word(const Words& parts) {
  return parts;
}
#else
constexpr int64_t kMaxParts = 31;  // bytes of at most 8

#if defined(__AVX2__)
// `nibbles` holds a number below 16 in every byte.
PATHWAYS_LANES Words count_nibbles(const Words& nibbles) {
  const __m256i table = _mm256_broadcastsi128_si256(
      _mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
  return reinterpret_cast<Words>(
      _mm256_shuffle_epi8(table, reinterpret_cast<__m256i>(nibbles)));
}

template <typename Word>
PATHWAYS_LANES Word low_nibbles(const Word& words) {
  return words & uint64_t{0x0f0f0f0f0f0f0f0f};
}

template <typename Word>
PATHWAYS_LANES Word high_nibbles(const Word& words) {
  return low_nibbles(words >> 4);
}

PATHWAYS_LANES Words count_parts(const Words& words) {
  return reinterpret_cast<Words>(_mm256_add_epi8(
      reinterpret_cast<__m256i>(count_nibbles(low_nibbles(words))),
      reinterpret_cast<__m256i>(count_nibbles(high_nibbles(words)))));
}

PATHWAYS_LANES Words parts_per_word(const Words& parts) {
  return reinterpret_cast<Words>(_mm256_sad_epu8(
      reinterpret_cast<__m256i>(parts), _mm256_setzero_si256()));
}
#elif defined(__aarch64__)
PATHWAYS_LANES Words count_parts(const Words& words) {
  return reinterpret_cast<Words>(vcntq_u8(reinterpret_cast<uint8x16_t>(words)));
}

PATHWAYS_LANES Words parts_per_word(const Words& parts) {
  return reinterpret_cast<Words>(vpaddlq_u32(
      vpaddlq_u16(vpaddlq_u8(reinterpret_cast<uint8x16_t>(parts)))));
}
#else
PATHWAYS_LANES Words count_parts(const Words& words) {
  const Words pairs = words - ((words >> 1) & all_words(0x5555555555555555));
  const Words nibbles = (pairs & all_words(0x3333333333333333)) +
                        ((pairs >> 2) & all_words(0x3333333333333333));
  return (nibbles + (nibbles >> 4)) & all_words(0x0f0f0f0f0f0f0f0f);
}

PATHWAYS_LANES Words parts_per_word(const Words& parts) {
  const Words sums = (parts & all_words(0x00ff00ff00ff00ff)) +
                     ((parts >> 8) & all_words(0x00ff00ff00ff00ff));
  const Words quarters = sums + (sums >> 16);
  return (quarters + (quarters >> 32)) & all_words(0xffff);
}
#endif
#endif

}  // namespace
}  // namespace PATHWAYS_VARIANT
}  // namespace pathways
