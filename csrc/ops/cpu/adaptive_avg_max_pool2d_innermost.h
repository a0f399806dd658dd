#pragma once

// Channels innermost: the lanes are channels, and what they give is turned
// around for the result, where channels are outermost. For <name>_loops.cpp
// files only (variant.h).

#include "adaptive_avg_max_pool2d_lanes.h"

namespace pathways {
namespace PATHWAYS_VARIANT {
namespace {

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

}  // namespace
}  // namespace PATHWAYS_VARIANT
}  // namespace pathways
