#pragma once

// What both ways through the maps of adaptive_avg_max_pool2d share. For
// <name>_loops.cpp files only (variant.h).

#include <limits>
#include <utility>

#include "adaptive_avg_max_pool2d_loops.h"
#include "lane_types.h"

namespace pathways {
namespace PATHWAYS_VARIANT {
namespace {

template <typename C>
constexpr C kNan = std::numeric_limits<C>::quiet_NaN();

template <typename C>
PATHWAYS_LANES Lanes<C> larger(const Lanes<C>& value, const Lanes<C>& most) {
  return select(value > most, value, most);
}

// -------------------------------------------------------------- shuffles

template <typename Register, int... kIndex>
PATHWAYS_LANES Register every_other(const Register& a, const Register& b,
                                    std::integer_sequence<int, kIndex...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, kIndex...);
#else
  using Lane = std::conditional_t<sizeof(a[0]) == 8, int64_t, int32_t>;
  typedef Lane Indices __attribute__((vector_size(sizeof(Register))));
  return __builtin_shuffle(a, b, Indices{kIndex...});
#endif
}

template <int kFirst, int... kIndex>
constexpr auto steps_of_two(std::integer_sequence<int, kIndex...>) {
  return std::integer_sequence<int, (2 * kIndex + kFirst)...>{};
}

// Numbers 0, 2, 4, ... of a and then b (kFirst = 0), or 1, 3, 5, ... (1).
template <int kFirst, typename T>
PATHWAYS_LANES Lanes<T> every_other(const Lanes<T>& a, const Lanes<T>& b) {
  constexpr auto kSteps = steps_of_two<kFirst>(
      std::make_integer_sequence<int, Lanes<T>::kPerPart>{});
  typename Lanes<T>::Register parts[2 * kParts];
  for (int p = 0; p < kParts; ++p) {
    parts[p] = a.part[p];
    parts[kParts + p] = b.part[p];
  }
  Lanes<T> result;
  for (int p = 0; p < kParts; ++p) {
    result.part[p] = every_other(parts[2 * p], parts[2 * p + 1], kSteps);
  }
  return result;
}

// Rows of a square to columns. With lane and row as the two halves of the bits
// of an index, each pass turns these by one.
template <typename T>
PATHWAYS_LANES void turn_around(Lanes<T>* square) {
  constexpr int kCount = Lanes<T>::kCount;
  Lanes<T> other[kCount];
  for (int pass = 1; pass < kCount; pass *= 2) {
    for (int i = 0; i < kCount / 2; ++i) {
      const Lanes<T>& a = square[2 * i];
      const Lanes<T>& b = square[2 * i + 1];
      other[i] = every_other<0>(a, b);
      other[kCount / 2 + i] = every_other<1>(a, b);
    }
    for (int i = 0; i < kCount; ++i) {
      square[i] = other[i];
    }
  }
}

// -------------------------------------------------------------- cells

struct Cell {
  int64_t row[2];
  int64_t column[2];
};

PATHWAYS_LANES Cell cell_of(const AdaptivePoolCall& call, int64_t index) {
  const int64_t* row = call.borders + 2 * (index / call.shape.columns);
  const int64_t* column =
      call.borders + 2 * call.shape.rows + 2 * (index % call.shape.columns);
  return {{row[0], row[1]}, {column[0], column[1]}};
}

}  // namespace
}  // namespace PATHWAYS_VARIANT
}  // namespace pathways
