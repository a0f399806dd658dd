#pragma once

// bfloat16 and float16 as lanes of float: loads are exact, stores round to
// nearest with ties to even. For <name>_loops.cpp files only (variant.h).

#include <cstdint>

#include "lanes.h"

#if defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace pathways {
namespace PATHWAYS_VARIANT {
namespace {

// Storage of the narrow types, laid out as those of torch.
struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

// 16 narrow numbers as the low halves of 32-bit lanes, and back.
PATHWAYS_LANES Lanes<uint32_t> widen(const uint16_t* from) {
  using Half = typename RegisterOf<uint16_t, kRegisterBytes / 2>::type;
  Lanes<uint32_t> result;
  for (int p = 0; p < kParts; ++p) {
    const Half half = load_register<Half>(from + p * Lanes<uint32_t>::kPerPart);
    result.part[p] = __builtin_convertvector(half, Lanes<uint32_t>::Register);
  }
  return result;
}

PATHWAYS_LANES void narrow(uint16_t* to, const Lanes<uint32_t>& value) {
  using Half = typename RegisterOf<uint16_t, kRegisterBytes / 2>::type;
  for (int p = 0; p < kParts; ++p) {
    const Half half = __builtin_convertvector(value.part[p], Half);
    store_register(to + p * Lanes<uint32_t>::kPerPart, half);
  }
}

template <int kBits>
PATHWAYS_LANES Lanes<uint32_t> shift_left(const Lanes<uint32_t>& value) {
  Lanes<uint32_t> result;
  for (int p = 0; p < kParts; ++p) {
    result.part[p] = value.part[p] << kBits;
  }
  return result;
}

template <int kBits>
PATHWAYS_LANES Lanes<uint32_t> shift_right(const Lanes<uint32_t>& value) {
  Lanes<uint32_t> result;
  for (int p = 0; p < kParts; ++p) {
    result.part[p] = value.part[p] >> kBits;
  }
  return result;
}

PATHWAYS_LANES Lanes<float> load(const BFloat16* from) {
  return bit_cast<float>(
      shift_left<16>(widen(reinterpret_cast<const uint16_t*>(from))));
}

// Round to nearest, ties to even; NaN becomes the quiet NaN of torch.
PATHWAYS_LANES void store(BFloat16* to, const Lanes<float>& value) {
  const Lanes<uint32_t> bits = bit_cast<uint32_t>(value);
  const Lanes<uint32_t> odd = shift_right<16>(bits) & all(uint32_t{1});
  const Lanes<uint32_t> rounded =
      shift_right<16>(bits + odd + all(uint32_t{0x7fff}));
  const Lanes<uint32_t> result =
      select<uint32_t>(value != value, all(uint32_t{0x7fc0}), rounded);
  narrow(reinterpret_cast<uint16_t*>(to), result);
}

#if defined(__AVX512F__)
// The forms with a mask, because g++ 12 warns inside its header of the others.
PATHWAYS_LANES Lanes<float> load(const Float16* from) {
  const __m256i bits =
      _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  return {{_mm512_maskz_cvtph_ps(0xffff, bits)}};
}

PATHWAYS_LANES void store(Float16* to, const Lanes<float>& value) {
  const __m256i bits =
      _mm512_maskz_cvtps_ph(0xffff, value.part[0], _MM_FROUND_TO_NEAREST_INT);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), bits);
}
#elif defined(__AVX2__)
PATHWAYS_LANES Lanes<float> load(const Float16* from) {
  Lanes<float> result;
  for (int p = 0; p < kParts; ++p) {
    result.part[p] = _mm256_cvtph_ps(
        _mm_loadu_si128(reinterpret_cast<const __m128i*>(from) + p));
  }
  return result;
}

PATHWAYS_LANES void store(Float16* to, const Lanes<float>& value) {
  for (int p = 0; p < kParts; ++p) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to) + p,
                     _mm256_cvtps_ph(value.part[p], _MM_FROUND_TO_NEAREST_INT));
  }
}
#elif defined(__aarch64__)
PATHWAYS_LANES Lanes<float> load(const Float16* from) {
  const auto* bits = reinterpret_cast<const uint16_t*>(from);
  Lanes<float> result;
  for (int p = 0; p < kParts; ++p) {
    result.part[p] = vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(bits + 4 * p)));
  }
  return result;
}

PATHWAYS_LANES void store(Float16* to, const Lanes<float>& value) {
  auto* bits = reinterpret_cast<uint16_t*>(to);
  for (int p = 0; p < kParts; ++p) {
    vst1_u16(bits + 4 * p, vreinterpret_u16_f16(vcvt_f16_f32(value.part[p])));
  }
}
#else
// The exponent of the narrow type is moved by a multiplication with 2^112,
// which also turns its subnormal numbers into normal ones.
PATHWAYS_LANES Lanes<float> load(const Float16* from) {
  const Lanes<uint32_t> bits = widen(reinterpret_cast<const uint16_t*>(from));
  const Lanes<uint32_t> size = shift_left<13>(bits & all(uint32_t{0x7fff}));
  const Lanes<uint32_t> finite =
      bit_cast<uint32_t>(bit_cast<float>(size) * all(0x1p112f));
  const Lanes<uint32_t> special = size | all(uint32_t{0x7f800000});
  const Lanes<uint32_t> joined =
      select<uint32_t>(size >= all(uint32_t{0x0f800000}), special, finite);
  return bit_cast<float>(joined | shift_left<16>(bits & all(uint32_t{0x8000})));
}

// Round to nearest, ties to even.
PATHWAYS_LANES void store(Float16* to, const Lanes<float>& value) {
  const Lanes<uint32_t> bits = bit_cast<uint32_t>(value);
  const Lanes<uint32_t> size = bits & all(uint32_t{0x7fffffff});
  const Lanes<uint32_t> odd = shift_right<13>(size) & all(uint32_t{1});
  const Lanes<uint32_t> normal = shift_right<13>(
      size - all(uint32_t{112u << 23}) + all(uint32_t{0xfff}) + odd);
  // Adding one half leaves the multiple of 2^-24 in the low bits, rounded.
  const Lanes<uint32_t> subnormal =
      bit_cast<uint32_t>(bit_cast<float>(size) + all(0.5f)) -
      bit_cast<uint32_t>(all(0.5f));
  Lanes<uint32_t> result =
      select<uint32_t>(size < all(uint32_t{113u << 23}), subnormal, normal);
  // From 65520 on, the nearest number of the narrow type is infinity.
  result = select<uint32_t>(size >= bit_cast<uint32_t>(all(65520.0f)),
                            all(uint32_t{0x7c00}), result);
  result = select<uint32_t>(value != value, all(uint32_t{0x7e00}), result);
  narrow(reinterpret_cast<uint16_t*>(to),
         result | (shift_right<16>(bits) & all(uint32_t{0x8000})));
}
#endif

}  // namespace
}  // namespace PATHWAYS_VARIANT
}  // namespace pathways
