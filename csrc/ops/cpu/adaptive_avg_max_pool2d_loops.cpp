// Contiguous maps: the rows of a cell are added up column by column, with the
// lanes next to each other in memory; then the columns of the result, which is
// short. Maps with their channels innermost have a file of their own.
//
// A NaN makes the sum of its cell NaN, so that the loops need not look for one:
// where a mean is NaN, which infinities can also make, the cell is gone through
// again. NaN in the result is always the same one.

#include "adaptive_avg_max_pool2d_innermost.h"
#include "adaptive_avg_max_pool2d_lanes.h"

namespace pathways {
namespace PATHWAYS_VARIANT {
namespace {

// Numbers as the loops want them, one by one.
template <typename T>
PATHWAYS_LANES ComputeType<T> widened(const T* from) {
  if constexpr (std::is_same_v<T, ComputeType<T>>) {
    return *from;
  } else {
    float values[Lanes<float>::kCount];
    store(values, load_part(from, 1));
    return values[0];
  }
}

// Sums and maxima of `rows` rows, `width` numbers apart, of kBlocks times as
// many columns as there are lanes.
template <int kBlocks, typename T, typename C = ComputeType<T>>
PATHWAYS_LANES void reduce_rows(const T* from, int64_t width, int64_t rows,
                                C* sums, C* most) {
  constexpr int64_t kStep = Lanes<C>::kCount;
  Lanes<C> sum[kBlocks];
  Lanes<C> max[kBlocks];
  for (int b = 0; b < kBlocks; ++b) {
    sum[b] = max[b] = load(from + b * kStep);
  }
  for (int64_t r = 1; r < rows; ++r) {
    from += width;
    for (int b = 0; b < kBlocks; ++b) {
      const Lanes<C> value = load(from + b * kStep);
      sum[b] = sum[b] + value;
      max[b] = larger(value, max[b]);
    }
  }
  for (int b = 0; b < kBlocks; ++b) {
    store(sums + b * kStep, sum[b]);
    store(most + b * kStep, max[b]);
  }
}

// The same for fewer columns than lanes. What is behind them is read too, as
// far as it is x, and leaves numbers of no meaning behind the results.
template <typename T, typename C = ComputeType<T>>
PATHWAYS_LANES void reduce_short_rows(const T* from, int64_t width,
                                      int64_t rows, int64_t readable, C* sums,
                                      C* most) {
  constexpr int64_t kStep = Lanes<C>::kCount;
  if ((rows - 1) * width + kStep <= readable) {
    return reduce_rows<1>(from, width, rows, sums, most);
  }
  Lanes<C> sum = load_part(from, width);
  Lanes<C> max = sum;
  for (int64_t r = 1; r < rows; ++r) {
    const Lanes<C> value = load_part(from + r * width, width);
    sum = sum + value;
    max = larger(value, max);
  }
  store(sums, sum);
  store(most, max);
}

template <typename T, typename C = ComputeType<T>>
PATHWAYS_LANES void reduce_columns(const T* from, int64_t width, int64_t rows,
                                   int64_t readable, C* sums, C* most) {
  constexpr int64_t kStep = Lanes<C>::kCount;
  if (width < kStep) {
    return reduce_short_rows(from, width, rows, readable, sums, most);
  }
  int64_t c = 0;
  for (; c + 4 * kStep <= width; c += 4 * kStep) {
    reduce_rows<4>(from + c, width, rows, sums + c, most + c);
  }
  for (; c + 2 * kStep <= width; c += 2 * kStep) {
    reduce_rows<2>(from + c, width, rows, sums + c, most + c);
  }
  if (c + kStep <= width) {
    reduce_rows<1>(from + c, width, rows, sums + c, most + c);
    c += kStep;
  }
  if (c < width) {
    // Some columns once more, with the same result.
    c = width - kStep;
    reduce_rows<1>(from + c, width, rows, sums + c, most + c);
  }
}

// Neighbours become one, in place; numbers of no meaning may follow.
template <typename C>
PATHWAYS_LANES void halve(C* sums, C* most, int64_t half) {
  constexpr int64_t kStep = Lanes<C>::kCount;
  for (int64_t i = 0; i < half; i += kStep) {
    const Lanes<C> s[2] = {load(sums + 2 * i), load(sums + 2 * i + kStep)};
    const Lanes<C> m[2] = {load(most + 2 * i), load(most + 2 * i + kStep)};
    store(sums + i, every_other<0>(s[0], s[1]) + every_other<1>(s[0], s[1]));
    store(most + i,
          larger(every_other<1>(m[0], m[1]), every_other<0>(m[0], m[1])));
  }
}

// A cell of which the mean is NaN, once more.
template <typename T, typename C = ComputeType<T>>
void mend(const AdaptivePoolCall& call, const T* map, int64_t cell, C* mean,
          C* most) {
  const Cell at = cell_of(call, cell);
  *mean = kNan<C>;
  for (int64_t r = at.row[0]; r < at.row[1]; ++r) {
    for (int64_t c = at.column[0]; c < at.column[1]; ++c) {
      const C value = widened(map + r * call.shape.width + c);
      if (value != value) {
        *most = kNan<C>;
        return;
      }
    }
  }
}

template <typename T, typename C>
PATHWAYS_LANES void store_all(const C* from, T* to, int64_t count) {
  int64_t i = 0;
  for (; i + Lanes<C>::kCount <= count; i += Lanes<C>::kCount) {
    store(to + i, load(from + i));
  }
  if (i < count) {
    store_part(to + i, load(from + i), count - i);
  }
}

// Sums of cells [first, first + count) to means; returns whether one is NaN.
template <typename C>
PATHWAYS_LANES bool divide(C* sums, const C* areas, int64_t count) {
  constexpr int64_t kStep = Lanes<C>::kCount;
  Mask<C> nan = all(C(0)) != all(C(0));
  int64_t i = 0;
  for (; i + kStep <= count; i += kStep) {
    const Lanes<C> mean = load(sums + i) / load(areas + i);
    nan = nan | (mean != mean);
    store(sums + i, mean);
  }
  if (i < count) {
    const Lanes<C> mean = load_part(sums + i, count - i) /
                          select(first_lanes<C>(count - i),
                                 load_part(areas + i, count - i), all(C(1)));
    nan = nan | (mean != mean);
    store(sums + i, mean);
  }
  return any(nan);
}

template <typename T, typename C = ComputeType<T>>
void contiguous(const AdaptivePoolCall& call, int64_t begin, int64_t end,
                C* scratch) {
  const PoolShape& shape = call.shape;
  const int64_t width = shape.width;
  const int64_t columns = shape.columns;
  const int64_t* row_borders = call.borders;
  const int64_t* column_borders = call.borders + 2 * shape.rows;
  const C* areas = static_cast<const C*>(call.areas);
  const int64_t group = call.group();
  const int64_t numbers = call.buffer_numbers();
  C* const sums = scratch;
  C* const most = scratch + numbers;
  // How often neighbours in a row belong to the same cell, all through.
  int halvings = 0;
  while (width % (columns << (halvings + 1)) == 0) {
    ++halvings;
  }
  const int64_t short_width = width >> halvings;
  const bool is_done = short_width == columns;
  C* const cell_sums = is_done ? sums : scratch + 2 * numbers;
  C* const cell_most = is_done ? most : scratch + 3 * numbers;
  for (int64_t plane = begin; plane < end; ++plane) {
    const T* map = static_cast<const T*>(call.x) + plane * shape.space();
    const int64_t readable = (shape.planes() - plane) * shape.space();
    const int64_t n = plane / shape.channels;
    T* to_mean =
        static_cast<T*>(call.y) + (n * shape.channels + plane) * shape.cells();
    T* to_most = to_mean + shape.channels * shape.cells();
    for (int64_t first = 0; first < shape.rows; first += group) {
      const int64_t rows = min_of(group, shape.rows - first);
      for (int64_t i = 0; i < rows; ++i) {
        const int64_t* border = row_borders + 2 * (first + i);
        const int64_t at = border[0] * width;
        reduce_columns(map + at, width, border[1] - border[0], readable - at,
                       sums + i * width, most + i * width);
      }
      int64_t count = rows * width;
      for (int k = 0; k < halvings; ++k) {
        count /= 2;
        halve(sums, most, count);
      }
      for (int64_t i = 0; !is_done && i < rows; ++i) {
        const C* row_sums = sums + i * short_width;
        const C* row_most = most + i * short_width;
        for (int64_t j = 0; j < columns; ++j) {
          const int64_t from = column_borders[2 * j] >> halvings;
          const int64_t to = column_borders[2 * j + 1] >> halvings;
          C sum = row_sums[from];
          C max = row_most[from];
          for (int64_t c = from + 1; c < to; ++c) {
            sum += row_sums[c];
            max = row_most[c] > max ? row_most[c] : max;
          }
          cell_sums[i * columns + j] = sum;
          cell_most[i * columns + j] = max;
        }
      }
      const int64_t cells = rows * columns;
      const int64_t cell = first * columns;
      if (divide(cell_sums, areas + cell, cells)) [[unlikely]] {
        for (int64_t k = 0; k < cells; ++k) {
          if (cell_sums[k] != cell_sums[k]) {
            mend(call, map, cell + k, cell_sums + k, cell_most + k);
          }
        }
      }
      store_all(cell_sums, to_mean + cell, cells);
      store_all(cell_most, to_most + cell, cells);
    }
  }
}

void contiguous_any(const AdaptivePoolCall& call, int64_t begin, int64_t end,
                    void* scratch) {
  with_type(call.type, [&](auto tag) {
    using T = typename decltype(tag)::type;
    contiguous<T>(call, begin, end, static_cast<ComputeType<T>*>(scratch));
  });
}

void innermost_any(const AdaptivePoolCall& call, int64_t begin, int64_t end) {
  with_type(call.type, [&](auto tag) {
    innermost<typename decltype(tag)::type>(call, begin, end);
  });
}

}  // namespace

extern const AdaptiveAvgMaxPool2dLoops adaptive_avg_max_pool2d_loops = {
    &contiguous_any, &innermost_any};

}  // namespace PATHWAYS_VARIANT
}  // namespace pathways
