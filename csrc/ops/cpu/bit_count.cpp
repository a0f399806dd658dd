#include "bit_count.h"

#include "../../core/bits.h"
#include "../../core/cpu_capability.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace pathways {
namespace {

// The one the others are tested against.
int64_t count_scalar(const uint64_t* a, const uint64_t* b, int64_t width) {
  int64_t count = 0;
  for (int64_t w = 0; w < width; ++w) {
    count += popcount64(a[w] & b[w]);
  }
  return count;
}

#if defined(__x86_64__)
// Machines of this level have the popcnt instruction, one word per cycle:
// within a third of the nibble lookup in AVX2 registers, and with nothing to
// set up for short rows.
__attribute__((target("avx2,popcnt"))) int64_t count_avx2(const uint64_t* a,
                                                          const uint64_t* b,
                                                          int64_t width) {
  int64_t count = 0;
  for (int64_t w = 0; w < width; ++w) {
    count += __builtin_popcountll(a[w] & b[w]);
  }
  return count;
}

__attribute__((target("avx512f,avx512vpopcntdq"))) int64_t
count_avx512(const uint64_t* a, const uint64_t* b, int64_t width) {
  __m512i counts = _mm512_setzero_si512();
  int64_t w = 0;
  for (; w + 8 <= width; w += 8) {
    const __m512i both =
        _mm512_and_si512(_mm512_loadu_si512(a + w), _mm512_loadu_si512(b + w));
    counts = _mm512_add_epi64(counts, _mm512_popcnt_epi64(both));
  }
  if (w < width) {
    const auto rest = static_cast<__mmask8>((1u << (width - w)) - 1u);
    const __m512i both =
        _mm512_and_si512(_mm512_maskz_loadu_epi64(rest, a + w),
                         _mm512_maskz_loadu_epi64(rest, b + w));
    counts = _mm512_add_epi64(counts, _mm512_popcnt_epi64(both));
  }
  // Not _mm512_reduce_add_epi64: g++ 12 warns inside its own header about it.
  alignas(64) int64_t lanes[8];
  _mm512_store_si512(lanes, counts);
  int64_t count = 0;
  for (const int64_t lane : lanes) {
    count += lane;
  }
  return count;
}
#elif defined(__aarch64__)
int64_t count_neon(const uint64_t* a, const uint64_t* b, int64_t width) {
  uint64x2_t counts = vdupq_n_u64(0);
  int64_t w = 0;
  for (; w + 2 <= width; w += 2) {
    const uint8x16_t bytes = vcntq_u8(
        vreinterpretq_u8_u64(vandq_u64(vld1q_u64(a + w), vld1q_u64(b + w))));
    counts = vaddq_u64(counts, vpaddlq_u32(vpaddlq_u16(vpaddlq_u8(bytes))));
  }
  int64_t count = static_cast<int64_t>(vaddvq_u64(counts));
  return w < width ? count + popcount64(a[w] & b[w]) : count;
}
#endif

using Count = int64_t (*)(const uint64_t*, const uint64_t*, int64_t);

Count choose() {
  switch (cpu_capability()) {
#if defined(__x86_64__)
    case CpuCapability::kAvx512: return &count_avx512;
    case CpuCapability::kAvx2: return &count_avx2;
#elif defined(__aarch64__)
    case CpuCapability::kNeon: return &count_neon;
#endif
    default: return &count_scalar;
  }
}

}  // namespace

int64_t intersection_count(const uint64_t* a, const uint64_t* b,
                           int64_t width) {
  static const Count count = choose();
  return count(a, b, width);
}

}  // namespace pathways
