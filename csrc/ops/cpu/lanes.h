#pragma once

// 64 bytes of numbers as one value: 16 floats or 8 doubles, in as many vector
// registers as the variant needs for them. The number of lanes is the same in
// every variant, and the loops are compiled without contraction to fused
// multiply-add, so that all variants give the same bits. For <name>_loops.cpp
// files only (variant.h).

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../../core/element_type.h"

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace pathways {
namespace PATHWAYS_VARIANT {
namespace {

#define PATHWAYS_LANES inline __attribute__((always_inline))

#if defined(__AVX512F__)
constexpr int kRegisterBytes = 64;
#elif defined(__AVX2__)
constexpr int kRegisterBytes = 32;
#else
constexpr int kRegisterBytes = 16;
#endif
constexpr int kLaneBytes = 64;
constexpr int kParts = kLaneBytes / kRegisterBytes;

PATHWAYS_LANES constexpr int64_t min_of(int64_t a, int64_t b) {
  return a < b ? a : b;
}

template <typename T, int kBytes>
struct RegisterOf {
  typedef T type __attribute__((vector_size(kBytes)));
};

template <typename T>
struct Lanes {
  static constexpr int kCount = kLaneBytes / static_cast<int>(sizeof(T));
  static constexpr int kPerPart = kCount / kParts;
  using Register = typename RegisterOf<T, kRegisterBytes>::type;
  Register part[kParts];
};

// How a register lies in memory: at any address, over numbers of any type.
template <typename Register>
struct InMemory {
  typedef Register type __attribute__((aligned(1), may_alias));
};

// Through these, because memcpy of all parts at once goes by the stack.
template <typename Register>
PATHWAYS_LANES Register load_register(const void* from) {
  return *static_cast<const typename InMemory<Register>::type*>(from);
}

template <typename Register>
PATHWAYS_LANES void store_register(void* to, const Register& value) {
  *static_cast<typename InMemory<Register>::type*>(to) = value;
}

// The result of a comparison: all bits set where it holds.
template <typename T>
using Mask = Lanes<std::conditional_t<sizeof(T) == 8, int64_t, int32_t>>;

template <typename T>
PATHWAYS_LANES Lanes<T> all(T value) {
  Lanes<T> result;
  for (int p = 0; p < kParts; ++p) {
    // A scalar operand is broadcast; subtracting 0 keeps the sign of -0.
    result.part[p] = value - typename Lanes<T>::Register{};
  }
  return result;
}

#define PATHWAYS_LANE_OPERATOR(op)                                            \
  template <typename T>                                                       \
  PATHWAYS_LANES Lanes<T> operator op(const Lanes<T>& a, const Lanes<T>& b) { \
    Lanes<T> result;                                                          \
    for (int p = 0; p < kParts; ++p) {                                        \
      result.part[p] = a.part[p] op b.part[p];                                \
    }                                                                         \
    return result;                                                            \
  }
PATHWAYS_LANE_OPERATOR(+)
PATHWAYS_LANE_OPERATOR(-)
PATHWAYS_LANE_OPERATOR(*)
PATHWAYS_LANE_OPERATOR(/)
PATHWAYS_LANE_OPERATOR(&)
PATHWAYS_LANE_OPERATOR(|)
#undef PATHWAYS_LANE_OPERATOR

#define PATHWAYS_LANE_COMPARISON(op)                                         \
  template <typename T>                                                      \
  PATHWAYS_LANES Mask<T> operator op(const Lanes<T>& a, const Lanes<T>& b) { \
    Mask<T> result;                                                          \
    for (int p = 0; p < kParts; ++p) {                                       \
      result.part[p] = a.part[p] op b.part[p];                               \
    }                                                                        \
    return result;                                                           \
  }
PATHWAYS_LANE_COMPARISON(<)
PATHWAYS_LANE_COMPARISON(<=)
PATHWAYS_LANE_COMPARISON(>)
PATHWAYS_LANE_COMPARISON(>=)
PATHWAYS_LANE_COMPARISON(==)
PATHWAYS_LANE_COMPARISON(!=)
#undef PATHWAYS_LANE_COMPARISON

template <typename T>
PATHWAYS_LANES Lanes<T> operator-(const Lanes<T>& a) {
  Lanes<T> result;
  for (int p = 0; p < kParts; ++p) {
    result.part[p] = -a.part[p];
  }
  return result;
}

// a where the mask is set, b elsewhere.
template <typename T>
PATHWAYS_LANES Lanes<T> select(const Mask<T>& mask, const Lanes<T>& a,
                               const Lanes<T>& b) {
  Lanes<T> result;
  for (int p = 0; p < kParts; ++p) {
    result.part[p] = mask.part[p] ? a.part[p] : b.part[p];
  }
  return result;
}

template <typename To, typename From>
PATHWAYS_LANES Lanes<To> bit_cast(const Lanes<From>& from) {
  static_assert(sizeof(To) == sizeof(From));
  Lanes<To> result;
  for (int p = 0; p < kParts; ++p) {
    result.part[p] =
        reinterpret_cast<typename Lanes<To>::Register>(from.part[p]);
  }
  return result;
}

template <typename T>
PATHWAYS_LANES bool any(const Lanes<T>& mask) {
  auto joined = mask.part[0];
  for (int p = 1; p < kParts; ++p) {
    joined |= mask.part[p];
  }
  uint64_t words[kRegisterBytes / 8];
  store_register(words, joined);
  uint64_t found = 0;
  for (const uint64_t word : words) {
    found |= word;
  }
  return found != 0;
}

// --------------------------------------------------------------- load and
// store

template <typename T>
PATHWAYS_LANES Lanes<T> load(const T* from) {
  Lanes<T> result;
  for (int p = 0; p < kParts; ++p) {
    result.part[p] = load_register<typename Lanes<T>::Register>(
        from + p * Lanes<T>::kPerPart);
  }
  return result;
}

template <typename T>
PATHWAYS_LANES void store(T* to, const Lanes<T>& value) {
  for (int p = 0; p < kParts; ++p) {
    store_register(to + p * Lanes<T>::kPerPart, value.part[p]);
  }
}

// The first `count` < kCount numbers; the other lanes are zero.
template <typename T>
PATHWAYS_LANES auto load_part(const T* from, int64_t count) {
  T values[Lanes<ComputeType<T>>::kCount] = {};
  for (int64_t i = 0; i < count; ++i) {
    values[i] = from[i];
  }
  return load(values);
}

template <typename T, typename C>
PATHWAYS_LANES void store_part(T* to, const Lanes<C>& value, int64_t count) {
  T values[Lanes<C>::kCount];
  store(values, value);
  for (int64_t i = 0; i < count; ++i) {
    to[i] = values[i];
  }
}

// Past the caches, for results that are much larger than those. `to` must be
// aligned to what a load of T reads; ends with a call of stream_end.
template <typename T, typename C>
PATHWAYS_LANES void stream(T* to, const Lanes<C>& value) {
#if defined(__AVX2__)
  alignas(kLaneBytes) T values[Lanes<C>::kCount];
  store(values, value);
  char* bytes = reinterpret_cast<char*>(to);
  constexpr size_t kPiece =
      sizeof(values) < kRegisterBytes ? sizeof(values) : kRegisterBytes;
  for (size_t at = 0; at < sizeof(values); at += kPiece) {
    const char* from = reinterpret_cast<const char*>(values) + at;
#if defined(__AVX512F__)
    if constexpr (kPiece == 64) {
      _mm512_stream_si512(reinterpret_cast<__m512i*>(bytes + at),
                          _mm512_load_si512(from));
      continue;
    }
#endif
    _mm256_stream_si256(
        reinterpret_cast<__m256i*>(bytes + at),
        _mm256_load_si256(reinterpret_cast<const __m256i*>(from)));
  }
#else
  store(to, value);
#endif
}

PATHWAYS_LANES void stream_end() {
#if defined(__AVX2__)
  _mm_sfence();
#endif
}

// --------------------------------------------------------------------- sums

constexpr int64_t kLaneNumbers64[8] = {0, 1, 2, 3, 4, 5, 6, 7};
constexpr int32_t kLaneNumbers32[16] = {0, 1, 2,  3,  4,  5,  6,  7,
                                        8, 9, 10, 11, 12, 13, 14, 15};

// Set for the lanes before `count`.
template <typename T>
PATHWAYS_LANES Mask<T> first_lanes(int64_t count) {
  if constexpr (sizeof(T) == 8) {
    return load(kLaneNumbers64) < all(count);
  } else {
    return load(kLaneNumbers32) < all(static_cast<int32_t>(count));
  }
}

// The two halves of 16 floats as doubles, added to two running sums.
PATHWAYS_LANES void add_wide(const Lanes<float>& value, Lanes<double>& low,
                             Lanes<double>& high) {
  using Half = typename RegisterOf<float, kRegisterBytes / 2>::type;
  float values[Lanes<float>::kCount];
  store(values, value);
  for (int p = 0; p < kParts; ++p) {
    const float* from = values + p * Lanes<double>::kPerPart;
    low.part[p] += __builtin_convertvector(load_register<Half>(from),
                                           Lanes<double>::Register);
    high.part[p] += __builtin_convertvector(
        load_register<Half>(from + Lanes<double>::kCount),
        Lanes<double>::Register);
  }
}

// Lane k + 4, then k + 2, then k + 1 is added to lane k.
PATHWAYS_LANES double sum_of(const Lanes<double>& value) {
  double values[Lanes<double>::kCount];
  store(values, value);
  for (int half = Lanes<double>::kCount / 2; half > 0; half /= 2) {
    for (int k = 0; k < half; ++k) {
      values[k] += values[k + half];
    }
  }
  return values[0];
}

}  // namespace
}  // namespace PATHWAYS_VARIANT
}  // namespace pathways
