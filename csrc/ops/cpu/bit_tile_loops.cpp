#include "bit_tile_loops.h"

#include "bit_product.h"

namespace pathways {
namespace PATHWAYS_VARIANT {
namespace {

int32_t size_of(const uint64_t* row, int64_t width) {
  Words total = {};
  int64_t w = 0;
  while (w < width) {
    const int64_t end = std::min(width, w + kMaxParts * kVectorWords);
    Words parts = {};
    for (; w < end; w += kVectorWords) {
      parts += count_parts(load_words(row + w, end - w));
    }
    total += parts_per_word(parts);
  }
  uint64_t size = 0;
  for (int64_t i = 0; i < kVectorWords; ++i) {
    size += total[i];
  }
  return static_cast<int32_t>(size);
}

void sizes(const BitMatrix& matrix, RowRange rows, int32_t* result) {
  for (int64_t n = 0; n < rows.count; ++n) {
    result[n] = size_of(matrix.row(rows.first + n), matrix.width);
  }
}

void differences(const BitMatrix& a, RowRange a_rows, const BitMatrix& b,
                 RowRange b_rows, bool upper, TileMemory& memory) {
  const bool whole = a.width <= kTileWords;
  int64_t first = 0;
  do {
    const int64_t words = std::min(a.width - first, kTileWords);
    const int64_t steps = (words + kStepWords - 1) / kStepWords;
    const int64_t row_words = panel_words(words);
    if (!whole || memory.first_row != a_rows.first) {
      fill_rows(a, a_rows, first, words, memory.row_panel);
      memory.first_row = a_rows.first;
    }
    fill_columns(b, b_rows, first, words, memory.column_panel);
    for (int64_t column = 0; column < b_rows.count; column += kPanelRows) {
      const uint64_t* panel = memory.column_panel + column * row_words;
      const int64_t last = column + kPanelRows;
      const int64_t rows = upper ? std::min(a_rows.count, last) : a_rows.count;
      for (int64_t row = 0; row < rows; row += kBlockRows) {
        const uint64_t* block = memory.row_panel + row * row_words;
        uint32_t* counts = memory.counts + row * memory.stride + column;
        int64_t step = 0;
        do {
          multiply_block(block + step * 2 * kBlockRows,
                         panel + step * 2 * kPanelRows,
                         std::min(steps - step, kMaxSteps), counts,
                         memory.stride, first + step > 0);
          step += kMaxSteps;
        } while (step < steps);
      }
    }
    first += words;
  } while (first < a.width);
}

// ------------------------------------------------------------- from counts

// |a & b| = (|a| + |b| - |a ^ b|) / 2. The sum may exceed the signed numbers of
// its type, but not the unsigned ones.
template <typename Counts>
PATHWAYS_LANES Counts intersection_of(const Counts& a_size,
                                      const Counts& b_size,
                                      const Counts& difference) {
  return (a_size + b_size - difference) >> 1;
}

// result[i] from the sizes of the intersection and of the union.
template <typename T, typename Function>
PATHWAYS_LANES void write_row(const uint32_t* differences, int32_t size,
                              const int32_t* sizes, int64_t count, T* result,
                              Function function) {
  using Counts = Lanes<uint32_t>::Register;
  constexpr int64_t kStep = Lanes<T>::kPerPart;
  const Counts a_size = Counts{} + static_cast<uint32_t>(size);
  for (int64_t i = 0; i < count; i += kStep) {
    const auto difference = load_register<Counts>(differences + i);
    const Counts both =
        intersection_of(a_size, load_register<Counts>(sizes + i), difference);
    const auto value = function(both, both + difference);
    if (i + kStep <= count) {
      store_register(result + i, value);
    } else {
      T rest[kStep];
      store_register(rest, value);
      std::copy(rest, rest + (count - i), result + i);
    }
  }
}

void intersections(const uint32_t* differences, int32_t size,
                   const int32_t* sizes, int64_t count, int32_t* result) {
  write_row(differences, size, sizes, count, result,
            [](const auto& both, const auto&) { return both; });
}

// The counts are below 2^31, and signed numbers are quicker to convert.
template <typename To, typename Counts>
PATHWAYS_LANES To converted(const Counts& counts) {
  typedef int32_t Signed __attribute__((vector_size(sizeof(Counts))));
  return __builtin_convertvector(reinterpret_cast<Signed>(counts), To);
}

// Two empty rows are the same, hence 1.
template <typename Numbers>
PATHWAYS_LANES Numbers iou_of(const Numbers& both, const Numbers& either) {
  return either == Numbers{} ? Numbers{} + 1 : both / either;
}

void ious(const uint32_t* differences, int32_t size, const int32_t* sizes,
          int64_t count, float* result) {
  write_row(differences, size, sizes, count, result,
            [](const auto& both, const auto& either) {
              using Numbers = Lanes<float>::Register;
              return iou_of(converted<Numbers>(both),
                            converted<Numbers>(either));
            });
}

double iou_sum(const uint32_t* differences, int64_t stride,
               const int32_t* row_sizes, int64_t rows,
               const int32_t* column_sizes, int64_t columns, bool upper) {
  using Numbers = Lanes<double>::Register;
  using Counts = RegisterOf<uint32_t, kRegisterBytes / 2>::type;
  constexpr int64_t kStep = Lanes<double>::kCount;
  Lanes<double> sum = all(0.0);
  for (int64_t r = 0; r < rows; ++r, differences += stride) {
    const Counts a_size = Counts{} + static_cast<uint32_t>(row_sizes[r]);
    const int64_t begin = upper ? r + 1 : 0;
    for (int64_t first = begin / kStep * kStep; first < columns;
         first += kStep) {
      Lanes<double> iou;
      for (int p = 0; p < kParts; ++p) {
        const int64_t column = first + p * Lanes<double>::kPerPart;
        const auto difference = load_register<Counts>(differences + column);
        const Counts both = intersection_of(
            a_size, load_register<Counts>(column_sizes + column), difference);
        iou.part[p] = iou_of(converted<Numbers>(both),
                             converted<Numbers>(both + difference));
      }
      if (first < begin || first + kStep > columns) {
        double values[kStep];
        store(values, iou);
        for (int64_t i = 0; i < kStep; ++i) {
          const bool inside = first + i >= begin && first + i < columns;
          values[i] = inside ? values[i] : 0.0;
        }
        iou = load(values);
      }
      sum = sum + iou;
    }
  }
  return sum_of(sum);
}

// ---------------------------------------------------------------- transpose

void transpose_numbers(const uint32_t* from, int64_t from_stride, int64_t rows,
                       int64_t columns, uint32_t* to, int64_t to_stride) {
  typedef uint32_t Four __attribute__((vector_size(16)));
  const int64_t whole = rows / 4 * 4;
  int64_t column = 0;
  for (; column + 4 <= columns; column += 4) {
    for (int64_t row = 0; row < whole; row += 4) {
      Four block[4];
      for (int64_t i = 0; i < 4; ++i) {
        block[i] = load_register<Four>(from + (row + i) * from_stride + column);
      }
      transpose(block);
      for (int64_t i = 0; i < 4; ++i) {
        store_register(to + (column + i) * to_stride + row, block[i]);
      }
    }
  }
  for (int64_t c = 0; c < columns; ++c) {
    for (int64_t row = c < column ? whole : 0; row < rows; ++row) {
      to[c * to_stride + row] = from[row * from_stride + c];
    }
  }
}

}  // namespace

extern const BitTileLoops bit_tile_loops = {
    &sizes, &differences, &intersections, &ious, &iou_sum, &transpose_numbers};

}  // namespace PATHWAYS_VARIANT
}  // namespace pathways
