// The ceiling of bit counting on this machine: and + popcount + add on
// registers, without a load in the loop. Compiled at run time by
// register_loop.py with the flags of the level to measure.

#include <cstdint>

#if defined(__AVX512VPOPCNTDQ__)
#include <immintrin.h>

using Register = __m512i;
static Register fill(uint64_t value) {
  return _mm512_set1_epi64(static_cast<long long>(value));
}
static Register count(Register a, Register b, Register sum) {
  return _mm512_add_epi64(sum, _mm512_popcnt_epi64(_mm512_and_si512(a, b)));
}
static uint64_t total(Register sum) {
  alignas(64) uint64_t lanes[8];
  _mm512_store_si512(lanes, sum);
  uint64_t result = 0;
  for (const uint64_t lane : lanes) {
    result += lane;
  }
  return result;
}
// The compiler must take the register for changed, so that it cannot fold the
// loop; no instruction.
#define CHANGED(r) asm volatile("" : "+v"(r))
#else
using Register = uint64_t;
static Register fill(uint64_t value) {
  return value;
}
static Register count(Register a, Register b, Register sum) {
  return sum + static_cast<uint64_t>(__builtin_popcountll(a & b));
}
static uint64_t total(Register sum) {
  return sum;
}
#define CHANGED(r) asm volatile("" : "+r"(r))
#endif

// Independent chains, to hide the latency of the three instructions. Sums and
// operands stay in the registers (32 vectors, or 16 general ones); named one by
// one, as arrays end up in memory.
#if defined(__AVX512VPOPCNTDQ__)
#define CHAINS(DO) \
  DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7) DO(8) DO(9) DO(10) DO(11)
constexpr int kChains = 12;
#else
#define CHAINS(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5)
constexpr int kChains = 6;
#endif

extern "C" {

int64_t bits_per_step() {
  return int64_t{8} * sizeof(Register) * kChains;
}

// Number of ones counted in `steps` steps: a quarter of the bits, so that a
// caller can check it.
uint64_t register_loop(int64_t steps) {
  Register a = fill(0x00ff00ff00ff00ff);
  Register b = fill(0x0f0f0f0f0f0f0f0f);
#define DECLARE(i) Register sum##i = fill(0);
#define COUNT(i) \
  CHANGED(a);    \
  sum##i = count(a, b, sum##i);
#define ADD(i) +total(sum##i)
  CHAINS(DECLARE)
  for (int64_t step = 0; step < steps; ++step) {
    CHAINS(COUNT)
  }
  return 0 CHAINS(ADD);
}
}
