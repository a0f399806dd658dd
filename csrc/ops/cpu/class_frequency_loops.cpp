#include "class_frequency_loops.h"

#include "bit_spread.h"
#include "bit_words.h"

namespace pathways {
namespace PATHWAYS_VARIANT {
namespace {

// Bits are counted in planes: plane p holds bit p of the count of every
// neuron, so that one instruction adds to as many counts as a register has
// bits. Rows enter by 16: an adder tree turns them and the four low planes
// into new low planes and one carry of weight 16.
constexpr int64_t kPlanes = 8;
constexpr int64_t kBatch = 16;
// The planes hold counts up to 255.
constexpr int64_t kFlushRows = 240;
constexpr int64_t kVectors = kFrequencyWords / kVectorWords;

struct Planes {
  Words plane[kVectors][kPlanes];
};

// a + b + c = a + 2 * (the result).
PATHWAYS_LANES Words add(Words& a, const Words& b, const Words& c) {
  const Words sum = sum_of(a, b, c);
  const Words carry = carry_of(a, b, sum);
  a = sum;
  return carry;
}

// The carry out of 2^kLevel registers from row(first) on, added to the planes
// below.
template <int kLevel, typename Row>
PATHWAYS_LANES Words add_rows(Words* low, const Row& row, int first) {
  if constexpr (kLevel == 1) {
    return add(low[0], row(first), row(first + 1));
  } else {
    const Words a = add_rows<kLevel - 1>(low, row, first);
    const Words b = add_rows<kLevel - 1>(low, row, first + (1 << (kLevel - 1)));
    return add(low[kLevel - 1], a, b);
  }
}

template <typename Row>
PATHWAYS_LANES void add_batch(Words* plane, const Row& row) {
  Words low[4] = {plane[0], plane[1], plane[2], plane[3]};
  Words carry = add_rows<4>(low, row, 0);
  for (int p = 0; p < 4; ++p) {
    plane[p] = low[p];
  }
  for (int p = 4; p < kPlanes; ++p) {
    const Words both = plane[p] & carry;
    plane[p] ^= carry;
    carry = both;
  }
}

void add_planes(const Planes& planes, int64_t words, int64_t bits,
                int64_t* counts) {
  for (int64_t w = 0; w < words; ++w) {
    const Words* plane = planes.plane[w / kVectorWords];
    Bytes sums = all(uint8_t{0});
    for (int64_t p = kPlanes - 1; p >= 0; --p) {
      sums = sums + sums + spread(plane[p][w % kVectorWords]);
    }
    uint8_t sum[Bytes::kCount];
    store(sum, sums);
    const int64_t count = min_of(bits - w * 64, 64);
    for (int64_t i = 0; i < count; ++i) {
      counts[w * 64 + i] += sum[i];
    }
  }
}

// Rows of a class are not neighbours: the processor cannot guess where the next
// ones are.
PATHWAYS_LANES void prefetch(const BitMatrix& matrix, RowRange rows, int64_t n,
                             int64_t first_word, int64_t words) {
  if (n < rows.count) {
    const uint64_t* row = matrix.row(rows.first + n) + first_word;
    for (int64_t w = 0; w < words; w += 8) {
      __builtin_prefetch(row + w, 0, 2);
    }
  }
}

void add_frequencies(const BitMatrix& matrix, RowRange rows, int64_t first_word,
                     int64_t words, int64_t bits, int64_t* counts) {
  const uint64_t zeros[kFrequencyWords] = {};
  const int64_t whole = words / kVectorWords;
  int64_t n = 0;
  while (n < rows.count) {
    Planes planes = {};
    const int64_t end = min_of(n + kFlushRows, rows.count);
    for (; n < end; n += kBatch) {
      const uint64_t* row[kBatch];
      for (int64_t i = 0; i < kBatch; ++i) {
        row[i] = n + i < rows.count
                     ? matrix.row(rows.first + n + i) + first_word
                     : zeros;
      }
      for (int64_t v = 0; v < whole; ++v) {
        const int64_t last = (v + 1) * kBatch / whole;
        for (int64_t i = v * kBatch / whole; i < last; ++i) {
          prefetch(matrix, rows, n + kBatch + i, first_word, words);
        }
        add_batch(planes.plane[v],
                  [&](int i) { return load_words(row[i] + v * kVectorWords); });
      }
      if (whole * kVectorWords < words) {
        add_batch(planes.plane[whole], [&](int i) {
          return load_words(row[i] + whole * kVectorWords,
                            words - whole * kVectorWords);
        });
      }
    }
    add_planes(planes, words, bits, counts);
  }
}

}  // namespace

extern const ClassFrequencyLoops class_frequency_loops = {&add_frequencies};

}  // namespace PATHWAYS_VARIANT
}  // namespace pathways
