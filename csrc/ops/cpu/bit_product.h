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
static_assert(kTileRows % kBlockRows == 0 && kTileRows % kPanelRows == 0);
// Arrays of registers must not become memory: every loop over a block is
// unrolled before the compiler looks for a call of memset in it.
#define PATHWAYS_UNROLL _Pragma("GCC unroll 16")

// A step takes kStepWords words of every row, held in the panels as the pair
// that `prepare` makes of them: of one row as numbers, of many as registers.
template <typename Word>
struct Pair {
  Word first;
  Word second;
};

// `Differences` counts the bits in which a row differs from every register of
// rows of a block, over at most kMaxSteps steps.
#if defined(__AVX512VPOPCNTDQ__) || !(defined(__AVX2__) || defined(__aarch64__))
constexpr int64_t kStepWords = 2;
constexpr int64_t kMaxSteps = kMaxParts;

template <typename Word>
PATHWAYS_LANES Pair<Word> prepare(const Word* words) {
  return {words[0], words[0] ^ words[1]};
}

class Differences {
 public:
  PATHWAYS_LANES Differences() {
    PATHWAYS_UNROLL for (int64_t c = 0; c < kBlockColumns; ++c) {
      left_[c] = Words{};
      pairs_[c] = Words{};
    }
  }

  PATHWAYS_LANES void add(const uint64_t* row, const Pair<Words>* column) {
#if defined(__AVX512VPOPCNTDQ__)
    // By hand for the order of the instructions: a compiler's keeps the units
    // of the processor less evenly busy, or takes more registers than there
    // are.
    Words sum0 = left_[0];
    Words sum1 = left_[1];
    Words carry0;
    Words carry1;
    Words pairs0 = pairs_[0];
    Words pairs1 = pairs_[1];
    asm("vpxorq %[first]%{1to8%}, %[first0], %[carry0]\n\t"
        "vpxorq %[first]%{1to8%}, %[first1], %[carry1]\n\t"
        "vpternlogq $0x96, %[second]%{1to8%}, %[second0], %[sum0]\n\t"
        "vpternlogq $0x96, %[second]%{1to8%}, %[second1], %[sum1]\n\t"
        "vpternlogq $0xd4, %[sum0], %[left0], %[carry0]\n\t"
        "vpternlogq $0xd4, %[sum1], %[left1], %[carry1]\n\t"
        "vpopcntq %[carry0], %[carry0]\n\t"
        "vpopcntq %[carry1], %[carry1]\n\t"
        "vpaddq %[carry0], %[pairs0], %[pairs0]\n\t"
        "vpaddq %[carry1], %[pairs1], %[pairs1]"
        : [sum0] "+&v"(sum0), [sum1] "+&v"(sum1), [carry0] "=&v"(carry0),
          [carry1] "=&v"(carry1), [pairs0] "+&v"(pairs0), [pairs1] "+&v"(pairs1)
        : [first] "m"(row[0]), [second] "m"(row[1]),
          [first0] "v"(column[0].first), [first1] "v"(column[1].first),
          [second0] "v"(column[0].second), [second1] "v"(column[1].second),
          [left0] "v"(left_[0]), [left1] "v"(left_[1]));
    left_[0] = sum0;
    left_[1] = sum1;
    pairs_[0] = pairs0;
    pairs_[1] = pairs1;
#else
    PATHWAYS_UNROLL for (int64_t c = 0; c < kBlockColumns; ++c) {
      const Words first = all_words(row[0]) ^ column[c].first;
      const Words sum = sum_of(left_[c], all_words(row[1]), column[c].second);
      pairs_[c] += count_parts(carry_of(left_[c], first, sum));
      left_[c] = sum;
    }
#endif
  }

  PATHWAYS_LANES Words count(int64_t c) const {
    return parts_per_word(pairs_[c]) * 2 +
           parts_per_word(count_parts(left_[c]));
  }

 private:
  Words left_[kBlockColumns];   // bits of weight one that make no pair yet
  Words pairs_[kBlockColumns];  // numbers of pairs
};
#else
// The adder costs as much as it saves: without an instruction for three
// operands here, and because counting is cheap on aarch64.
#if defined(__AVX2__)
constexpr int64_t kStepWords = 1;
constexpr int64_t kMaxSteps = kMaxParts;

template <typename Word>
PATHWAYS_LANES Pair<Word> prepare(const Word* words) {
  return {low_nibbles(words[0]), high_nibbles(words[0])};
}

PATHWAYS_LANES Words parts_of(const Words& low, const Words& high) {
  return count_nibbles(low) + count_nibbles(high);
}
#else
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

class Differences {
 public:
  PATHWAYS_LANES Differences() {
    PATHWAYS_UNROLL for (Words& parts : parts_) {
      parts = Words{};
    }
  }

  PATHWAYS_LANES void add(const uint64_t* row, const Pair<Words>* column) {
    PATHWAYS_UNROLL for (int64_t c = 0; c < kBlockColumns; ++c) {
      parts_[c] += parts_of(all_words(row[0]) ^ column[c].first,
                            all_words(row[1]) ^ column[c].second);
    }
  }

  PATHWAYS_LANES Words count(int64_t c) const {
    return parts_per_word(parts_[c]);
  }

 private:
  Words parts_[kBlockColumns];
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
  Differences differences[kBlockRows];
  for (int64_t step = 0; step < steps; ++step) {
    Pair<Words> column[kBlockColumns];
    PATHWAYS_UNROLL for (int64_t c = 0; c < kBlockColumns; ++c) {
      column[c] = {load_words(b + c * kVectorWords),
                   load_words(b + c * kVectorWords + kPanelRows)};
    }
    PATHWAYS_UNROLL for (int64_t r = 0; r < kBlockRows; ++r) {
      differences[r].add(a + 2 * r, column);
    }
    a += 2 * kBlockRows;
    b += 2 * kPanelRows;
  }
  using Counts = RegisterOf<uint32_t, kRegisterBytes / 2>::type;
  PATHWAYS_UNROLL for (int64_t r = 0; r < kBlockRows; ++r) {
    PATHWAYS_UNROLL for (int64_t c = 0; c < kBlockColumns; ++c) {
      uint32_t* to = counts + r * stride + c * kVectorWords;
      Counts count = __builtin_convertvector(differences[r].count(c), Counts);
      if (add) {
        count += load_register<Counts>(to);
      }
      store_register(to, count);
    }
  }
}

#undef PATHWAYS_UNROLL

}  // namespace
}  // namespace PATHWAYS_VARIANT
}  // namespace pathways
