// Contiguous maps: the rows of a cell are added up column by column, with the
// lanes next to each other in memory; then the columns of the result, which is
// short. Channels innermost: the lanes are channels, and what they give is
// turned around for the result, where channels are outermost.
//
// A NaN makes the sum of its cell NaN, so that the loops need not look for one:
// where a mean is NaN, which infinities can also make, the cell is gone through
// again. NaN in the result is always the same one.

#include "adaptive_avg_max_pool2d_loops.h"

#include <limits>
#include <utility>

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

// -------------------------------------------------------------- contiguous

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

// -------------------------------------------------------------- innermost

// Blocks of channels that are read at a time: as many as have registers.
constexpr int kBlocks = kParts == 1 ? 4 : kParts == 2 ? 2 : 1;

// The channels that the lanes stand for, as far as they are x.
template <typename T>
struct Pixels {
  const T* from;     // the first channel of the first pixel
  int64_t readable;  // numbers from there on that are x
  int64_t channels;  // of a pixel
  int64_t count;     // of the lanes; fewer where there are fewer channels

  template <bool kAll>
  PATHWAYS_LANES auto at(int64_t pixel) const {
    const T* first = from + pixel * channels;
    if constexpr (kAll) {
      return load(first);
    } else {
      return load_part(first, count);
    }
  }

  // Whether all lanes can be read up to this pixel.
  PATHWAYS_LANES bool is_whole(int64_t pixel) const {
    return pixel * channels + kLanes <= readable;
  }

  // The lanes b times further on.
  PATHWAYS_LANES Pixels block(int64_t b) const {
    return {from + b * kLanes, readable - b * kLanes, channels, count};
  }

  static constexpr int64_t kLanes = Lanes<ComputeType<T>>::kCount;
};

template <int kCount, bool kAll, typename T, typename C = ComputeType<T>>
PATHWAYS_LANES void reduce_pixels(const Pixels<T>& pixels, int64_t width,
                                  const Cell& cell, Lanes<C>* sum,
                                  Lanes<C>* max) {
  const int64_t start = cell.row[0] * width + cell.column[0];
  Lanes<C> s[kCount];
  Lanes<C> m[kCount];
  for (int b = 0; b < kCount; ++b) {
    s[b] = m[b] = pixels.block(b).template at<kAll>(start);
  }
  for (int64_t r = cell.row[0]; r < cell.row[1]; ++r) {
    for (int64_t c = cell.column[0]; c < cell.column[1]; ++c) {
      const int64_t pixel = r * width + c;
      if (pixel == start) {
        continue;
      }
      for (int b = 0; b < kCount; ++b) {
        const Lanes<C> value = pixels.block(b).template at<kAll>(pixel);
        s[b] = s[b] + value;
        m[b] = larger(value, m[b]);
      }
    }
  }
  for (int b = 0; b < kCount; ++b) {
    sum[b] = s[b];
    max[b] = m[b];
  }
}

// Cells [first, first + count) of the grid, of which the mean of some channel
// is NaN, once more.
template <typename T, typename C = ComputeType<T>>
void mend_pixels(const AdaptivePoolCall& call, const Pixels<T>& pixels,
                 int64_t first, int64_t count, Lanes<C>* mean, Lanes<C>* max) {
  const Mask<C> none = all(C(0)) != all(C(0));
  for (int64_t k = 0; k < count; ++k) {
    const Cell cell = cell_of(call, first + k);
    Mask<C> nan = none;
    for (int64_t r = cell.row[0]; r < cell.row[1]; ++r) {
      for (int64_t c = cell.column[0]; c < cell.column[1]; ++c) {
        const int64_t pixel = r * call.shape.width + c;
        const Lanes<C> value = pixels.is_whole(pixel)
                                   ? pixels.template at<true>(pixel)
                                   : pixels.template at<false>(pixel);
        nan = nan | (value != value);
      }
    }
    max[k] = select(nan, all(kNan<C>), max[k]);
    mean[k] = select(mean[k] != mean[k], all(kNan<C>), mean[k]);
  }
}

// kCount blocks of channels from `pixels` on, of one input. `skip` channels of
// the first block have been written before.
template <int kCount, typename T, typename C = ComputeType<T>>
void reduce_blocks(const AdaptivePoolCall& call, const Pixels<T>& pixels,
                   int64_t skip, T* to_mean, T* to_most) {
  constexpr int kStep = Lanes<C>::kCount;
  const PoolShape& shape = call.shape;
  const C* areas = static_cast<const C*>(call.areas);
  const int64_t cells = shape.cells();
  Lanes<C> means[kCount][kStep];
  Lanes<C> most[kCount][kStep];
  for (int64_t first = 0; first < cells; first += kStep) {
    const int64_t count = min_of(kStep, cells - first);
    Mask<C> nan = all(C(0)) != all(C(0));
    for (int64_t k = 0; k < count; ++k) {
      const Cell cell = cell_of(call, first + k);
      const int64_t last = (cell.row[1] - 1) * shape.width + cell.column[1] - 1;
      Lanes<C> sum[kCount];
      Lanes<C> max[kCount];
      if (pixels.is_whole(last)) {
        reduce_pixels<kCount, true>(pixels, shape.width, cell, sum, max);
      } else {
        reduce_pixels<kCount, false>(pixels, shape.width, cell, sum, max);
      }
      const Lanes<C> area = all(areas[first + k]);
      for (int b = 0; b < kCount; ++b) {
        means[b][k] = sum[b] / area;
        nan = nan | (means[b][k] != means[b][k]);
        most[b][k] = max[b];
      }
    }
    const bool found = any(nan);
    for (int b = 0; b < kCount; ++b) {
      if (found) [[unlikely]] {
        mend_pixels(call, pixels.block(b), first, count, means[b], most[b]);
      }
      for (int64_t k = count; k < kStep; ++k) {
        means[b][k] = most[b][k] = all(C(0));
      }
      turn_around(means[b]);
      turn_around(most[b]);
      for (int64_t c = b == 0 ? skip : 0; c < pixels.count; ++c) {
        const int64_t at = (b * kStep + c) * cells + first;
        if (count == kStep) {
          store(to_mean + at, means[b][c]);
          store(to_most + at, most[b][c]);
        } else {
          store_part(to_mean + at, means[b][c], count);
          store_part(to_most + at, most[b][c], count);
        }
      }
    }
  }
}

template <typename T, typename C = ComputeType<T>>
void innermost(const AdaptivePoolCall& call, int64_t begin, int64_t end) {
  constexpr int64_t kStep = Lanes<C>::kCount;
  const PoolShape& shape = call.shape;
  const int64_t channels = shape.channels;
  const int64_t groups = call.channel_groups();
  for (int64_t index = begin; index < end; ++index) {
    const int64_t n = index / groups;
    const int64_t input = n * shape.space() * channels;
    const int64_t all_readable = (shape.batch - n) * shape.space() * channels;
    int64_t c = index % groups * kPoolChannels;
    const int64_t last = min_of(c + kPoolChannels, channels);
    const auto run = [&](auto blocks, int64_t first, int64_t skip) {
      const Pixels<T> pixels{static_cast<const T*>(call.x) + input + first,
                             all_readable - first, channels,
                             min_of(kStep, channels)};
      T* to_mean =
          static_cast<T*>(call.y) + (2 * n * channels + first) * shape.cells();
      reduce_blocks<decltype(blocks)::value>(
          call, pixels, skip, to_mean, to_mean + channels * shape.cells());
    };
    for (; c + kBlocks * kStep <= last; c += kBlocks * kStep) {
      run(std::integral_constant<int, kBlocks>{}, c, 0);
    }
    for (; c + kStep <= last; c += kStep) {
      run(std::integral_constant<int, 1>{}, c, 0);
    }
    if (c < last) {
      // The last lanes, of which some belong to channels before.
      const int64_t first = channels < kStep ? 0 : last - kStep;
      run(std::integral_constant<int, 1>{}, first, c - first);
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
