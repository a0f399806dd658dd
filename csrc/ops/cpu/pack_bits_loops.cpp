#include "pack_bits_loops.h"

#include "bit_spread.h"

namespace pathways {
namespace PATHWAYS_VARIANT {
namespace {

template <typename T>
uint64_t pack_word(const T* from, int64_t stride, int64_t count,
                   T significant) {
  uint64_t word = 0;
  for (int64_t i = 0; i < count; ++i) {
    word |= uint64_t{(from[i * stride] & significant) != 0} << i;
  }
  return word;
}

// How far ahead a mask is read. It leaves the caches sooner than anything else
// of its size in bits, and from there on the rate of reading decides: 16 KiB
// ahead took 3/4 of the time of the processor's own prefetching, which ends at
// every page, and 4 KiB ahead more time than none.
constexpr int64_t kAheadBytes = 1 << 14;

template <typename T>
PATHWAYS_LANES void prefetch(const T* from) {
  const char* ahead = reinterpret_cast<const char*>(from) + kAheadBytes;
  for (size_t i = 0; i < sizeof(T); ++i) {
    __builtin_prefetch(ahead + 64 * i);
  }
}

template <typename T>
void pack_as(const T* from, int64_t stride, int64_t size, T significant,
             uint64_t* words) {
  if (stride == 1) {
    for (; size >= 64; size -= 64, from += 64, ++words) {
      prefetch(from);
      *words = nonzero(from, significant);
    }
  }
  for (; size >= 64; size -= 64, from += 64 * stride, ++words) {
    *words = pack_word(from, stride, 64, significant);
  }
  if (size > 0) {
    *words = pack_word(from, stride, size, significant);
  }
}

void pack(NumberFormat format, const void* numbers, int64_t stride,
          int64_t size, uint64_t* words) {
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    const T all_bits = static_cast<T>(~zero);
    const T significant =
        format.signed_zero ? static_cast<T>(all_bits >> 1) : all_bits;
    pack_as(static_cast<const T*>(numbers), stride, size, significant, words);
  };
  switch (format.bytes) {
    case 1: return run(uint8_t{0});
    case 2: return run(uint16_t{0});
    case 4: return run(uint32_t{0});
    default: return run(uint64_t{0});
  }
}

void unpack(const uint64_t* words, int64_t size, uint8_t* bytes) {
  for (; size >= 64; size -= 64, bytes += 64, ++words) {
    store(bytes, spread(*words));
  }
  for (int64_t i = 0; i < size; ++i) {
    bytes[i] = static_cast<uint8_t>((*words >> i) & 1);
  }
}

}  // namespace

extern const PackBitsLoops pack_bits_loops = {&pack, &unpack};

}  // namespace PATHWAYS_VARIANT
}  // namespace pathways
