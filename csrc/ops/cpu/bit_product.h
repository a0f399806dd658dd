#pragma once

// Products of bit matrices: the number of bits in which every row of `a`
// differs from every row of `b`, by blocks that stay in registers. For
// <name>_loops.cpp files only (variant.h).
//
// Rows of b are transposed into panels, so that a register holds the same word
// of as many rows, and the words of a are broadcast against it: no sum across
// a register is ever needed. Differences instead of intersections, because a
// carry-save adder over them takes three instructions for two words and leaves
// one word to count: with x = a0 ^ b0 and y = a1 ^ b1, the sum of x, y and what
// was left over is (a0 ^ a1) ^ (b0 ^ b1) ^ left, whose first two terms are
// prepared in the panels, and the carry follows from x, `left` and the sum.
// That is fewer instructions per word than and, count, add.

#include <algorithm>

#include "bit_tile.h"
#include "bit_words.h"

namespace pathways {
namespace PATHWAYS_VARIANT {
namespace {

// Rows of a and registers of rows of b in a block.
#if defined(__AVX512VPOPCNTDQ__)
constexpr int64_t kBlockRows = 4;
constexpr int64_t kBlockColumns = 2;
#elif defined(__AVX2__)
constexpr int64_t kBlockRows = 2;
constexpr int64_t kBlockColumns = 2;
#elif defined(__aarch64__)
constexpr int64_t kBlockRows = 4;
constexpr int64_t kBlockColumns = 4;
#else
constexpr int64_t kBlockRows = 2;
constexpr int64_t kBlockColumns = 2;
#endif
constexpr int64_t kPanelRows = kBlockColumns * kVectorWords;
constexpr int64_t kBlock = kBlockRows * kBlockColumns;
static_assert(kTileRows % kBlockRows == 0 && kTileRows % kPanelRows == 0);
// Arrays of registers must not become memory: every loop over a block is
// unrolled before the compiler looks for a call of memset in it.
#define PATHWAYS_UNROLL _Pragma("GCC unroll 16")

// A step takes kStepWords words of every row, held in the panels as the pair
// that `prepare` makes of them: one row's as numbers, many rows' as registers.
template <typename Word>
struct Pair {
  Word first;
  Word second;
};

// `Differences` counts the bits in which every row of a block differs from
// every register of rows, over at most kMaxSteps steps.
#if defined(__AVX2__) && !defined(__AVX512VPOPCNTDQ__)
// Without an instruction that counts bits, the adder costs as much as it saves.
constexpr int64_t kStepWords = 1;
constexpr int64_t kMaxSteps = kMaxParts;

template <typename Word>
PATHWAYS_LANES Pair<Word> prepare(const Word* words) {
  return {low_nibbles(words[0]), high_nibbles(words[0])};
}

PATHWAYS_LANES Words parts_of(const Words& low, const Words& high) {
  return count_nibbles(low) + count_nibbles(high);
}
#elif defined(__aarch64__)
constexpr int64_t kStepWords = 2;
constexpr int64_t kMaxSteps = kMaxParts / 2;

template <typename Word>
PATHWAYS_LANES Pair<Word> prepare(const Word* words) {
  return {words[0], words[1]};
}

PATHWAYS_LANES Words parts_of(const Words& first, const Words& second) {
  return count_parts(first) + count_parts(second);
}
#endif

#if (defined(__AVX2__) && !defined(__AVX512VPOPCNTDQ__)) || defined(__aarch64__)
class Differences {
 public:
  PATHWAYS_LANES Differences() {
    PATHWAYS_UNROLL for (Words& parts : parts_) {
      parts = Words{};
    }
  }

  PATHWAYS_LANES void add(const Pair<Words>* row, const Pair<Words>* column) {
    PATHWAYS_UNROLL for (int64_t i = 0; i < kBlock; ++i) {
      const Pair<Words>& a = row[i / kBlockColumns];
      const Pair<Words>& b = column[i % kBlockColumns];
      parts_[i] += parts_of(a.first ^ b.first, a.second ^ b.second);
    }
  }

  PATHWAYS_LANES Words count(int64_t i) const {
    return parts_per_word(parts_[i]);
  }

 private:
  Words parts_[kBlock];
};
#else
constexpr int64_t kStepWords = 2;
constexpr int64_t kMaxSteps = kMaxParts;

template <typename Word>
PATHWAYS_LANES Pair<Word> prepare(const Word* words) {
  return {words[0], words[0] ^ words[1]};
}

// One row and two columns: `left` gets the sum of what was left over and the
// two differing words, `pairs` the number of carries.
PATHWAYS_LANES void add_two(const Pair<Words>& row, const Pair<Words>& column0,
                            const Pair<Words>& column1, Words& left0,
                            Words& left1, Words& pairs0, Words& pairs1) {
#if defined(__AVX512VPOPCNTDQ__)
  // By hand for the order of the instructions: a compiler's keeps the units of
  // the processor less evenly busy, or takes more registers than there are.
  Words sum0 = left0;
  Words sum1 = left1;
  Words carry0;
  Words carry1;
  Words count0 = pairs0;
  Words count1 = pairs1;
  asm("vpxorq %[row], %[column0], %[carry0]\n\t"
      "vpxorq %[row], %[column1], %[carry1]\n\t"
      "vpternlogq $0x96, %[row_xor], %[column_xor0], %[sum0]\n\t"
      "vpternlogq $0x96, %[row_xor], %[column_xor1], %[sum1]\n\t"
      "vpternlogq $0xd4, %[sum0], %[left0], %[carry0]\n\t"
      "vpternlogq $0xd4, %[sum1], %[left1], %[carry1]\n\t"
      "vpopcntq %[carry0], %[carry0]\n\t"
      "vpopcntq %[carry1], %[carry1]\n\t"
      "vpaddq %[carry0], %[count0], %[count0]\n\t"
      "vpaddq %[carry1], %[count1], %[count1]"
      : [sum0] "+&v"(sum0), [sum1] "+&v"(sum1), [carry0] "=&v"(carry0),
        [carry1] "=&v"(carry1), [count0] "+&v"(count0), [count1] "+&v"(count1)
      : [row] "v"(row.first), [row_xor] "v"(row.second),
        [column0] "v"(column0.first), [column1] "v"(column1.first),
        [column_xor0] "v"(column0.second), [column_xor1] "v"(column1.second),
        [left0] "v"(left0), [left1] "v"(left1));
  left0 = sum0;
  left1 = sum1;
  pairs0 = count0;
  pairs1 = count1;
#else
  const Words sum0 = sum_of(left0, row.second, column0.second);
  const Words sum1 = sum_of(left1, row.second, column1.second);
  pairs0 += count_parts(carry_of(left0, row.first ^ column0.first, sum0));
  pairs1 += count_parts(carry_of(left1, row.first ^ column1.first, sum1));
  left0 = sum0;
  left1 = sum1;
#endif
}

class Differences {
 public:
  PATHWAYS_LANES Differences() {
    PATHWAYS_UNROLL for (int64_t i = 0; i < kBlock; ++i) {
      left_[i] = Words{};
      pairs_[i] = Words{};
    }
  }

  PATHWAYS_LANES void add(const Pair<Words>* row, const Pair<Words>* column) {
    PATHWAYS_UNROLL for (int64_t i = 0; i < kBlock; i += 2) {
      add_two(row[i / kBlockColumns], column[i % kBlockColumns],
              column[i % kBlockColumns + 1], left_[i], left_[i + 1], pairs_[i],
              pairs_[i + 1]);
    }
  }

  PATHWAYS_LANES Words count(int64_t i) const {
    return parts_per_word(pairs_[i]) * 2 +
           parts_per_word(count_parts(left_[i]));
  }

 private:
  Words left_[kBlock];   // the sums' bits of weight one
  Words pairs_[kBlock];  // counts of weight two
};
#endif

// ------------------------------------------------------------------ panels

// Words of a row in a panel that holds `words` words of it.
constexpr int64_t panel_words(int64_t words) {
  return (words + kVectorWords - 1) / kVectorWords * kVectorWords * 2 /
         kStepWords;
}

// Rows missing from the last panel or block are repetitions of the last one,
// whose counts nobody reads.
PATHWAYS_LANES const uint64_t* row_or_last(const BitMatrix& matrix,
                                           RowRange rows, int64_t n) {
  return matrix.row(rows.first + std::min(n, rows.count - 1));
}

// `words` words of rows of b. In a panel: for every step both of the pair, for
// every register of rows.
void fill_columns(const BitMatrix& b, RowRange rows, int64_t first_word,
                  int64_t words, uint64_t* panel) {
  for (int64_t n = 0; n < rows.count; n += kVectorWords) {
    const uint64_t* from[kVectorWords];
    for (int64_t i = 0; i < kVectorWords; ++i) {
      from[i] = row_or_last(b, rows, n + i) + first_word;
    }
    uint64_t* to = panel + n / kPanelRows * kPanelRows * panel_words(words) +
                   n % kPanelRows;
    const auto put = [&](int64_t w, int64_t count) {
      Words block[kVectorWords];
      PATHWAYS_UNROLL for (int64_t i = 0; i < kVectorWords; ++i) {
        block[i] = load_words(from[i] + w, count);
      }
      transpose(block);
      PATHWAYS_UNROLL for (int64_t i = 0; i < kVectorWords; i += kStepWords) {
        const Pair<Words> pair = prepare(block + i);
        store_words(to, pair.first);
        store_words(to + kPanelRows, pair.second);
        to += 2 * kPanelRows;
      }
    };
    int64_t w = 0;
    for (; w + kVectorWords <= words; w += kVectorWords) {
      put(w, kVectorWords);
    }
    if (w < words) {
      put(w, words - w);
    }
  }
}

// The same of rows of a. In a block: for every step the pairs of all rows.
void fill_rows(const BitMatrix& a, RowRange rows, int64_t first_word,
               int64_t words, uint64_t* panel) {
  typedef uint64_t Two __attribute__((vector_size(16)));
  for (int64_t n = 0; n < rows.count; n += kBlockRows) {
    const uint64_t* from[kBlockRows];
    for (int64_t r = 0; r < kBlockRows; ++r) {
      from[r] = row_or_last(a, rows, n + r) + first_word;
    }
    uint64_t* to = panel + n * panel_words(words);
    for (int64_t w = 0; w < words; w += kStepWords) {
      PATHWAYS_UNROLL for (int64_t r = 0; r < kBlockRows; ++r) {
        const uint64_t last[2] = {from[r][w], 0};
        const Pair<uint64_t> pair =
            prepare(w + kStepWords <= words ? from[r] + w : last);
        store_register(to, Two{pair.first, pair.second});
        to += 2;
      }
    }
  }
}

// ------------------------------------------------------------------- block

// At most kMaxSteps steps of one block of rows of a with one panel of b: the
// differences of every row and every row, written or added to kPanelRows counts
// each.
PATHWAYS_LANES void multiply_block(const uint64_t* a, const uint64_t* b,
                                   int64_t steps, uint32_t* counts,
                                   int64_t stride, bool add) {
  Differences differences;
  for (int64_t step = 0; step < steps; ++step) {
    Pair<Words> column[kBlockColumns];
    Pair<Words> row[kBlockRows];
    PATHWAYS_UNROLL for (int64_t c = 0; c < kBlockColumns; ++c) {
      column[c] = {load_words(b + c * kVectorWords),
                   load_words(b + c * kVectorWords + kPanelRows)};
    }
    PATHWAYS_UNROLL for (int64_t r = 0; r < kBlockRows; ++r) {
      row[r] = {all_words(a[2 * r]), all_words(a[2 * r + 1])};
    }
    differences.add(row, column);
    a += 2 * kBlockRows;
    b += 2 * kPanelRows;
  }
  using Counts = RegisterOf<uint32_t, kRegisterBytes / 2>::type;
  PATHWAYS_UNROLL for (int64_t i = 0; i < kBlock; ++i) {
    uint32_t* to =
        counts + i / kBlockColumns * stride + i % kBlockColumns * kVectorWords;
    Counts count = __builtin_convertvector(differences.count(i), Counts);
    if (add) {
      count += load_register<Counts>(to);
    }
    store_register(to, count);
  }
}

#undef PATHWAYS_UNROLL

}  // namespace
}  // namespace PATHWAYS_VARIANT
}  // namespace pathways
