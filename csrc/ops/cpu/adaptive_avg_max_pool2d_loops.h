#pragma once

#include <algorithm>
#include <cstdint>

#include "../../core/element_type.h"
#include "../../core/pool_shape.h"
#include "variant.h"

namespace pathways {

// Channels of a task where they are innermost.
constexpr int64_t kPoolChannels = 64;

struct AdaptivePoolCall {
  ElementType type;  // of x and y
  PoolShape shape;
  const void* x;
  void* y;  // [N, 2 C, rows, columns]
  // First and end of the cells: those of the rows, then those of the columns.
  const int64_t* borders;  // [2 rows + 2 columns]
  const void* areas;       // [rows * columns], in the compute type

  int64_t channel_groups() const {
    return (shape.channels + kPoolChannels - 1) / kPoolChannels;
  }

  // Contiguous maps: rows of cells whose columns are summed before these are,
  // and the numbers of the compute type that this takes room for.
  int64_t group() const {
    constexpr int64_t kNumbers = 2048;
    const int64_t row = std::max(shape.width, shape.columns);
    return std::clamp<int64_t>(kNumbers / row, 1, shape.rows);
  }
  int64_t buffer_numbers() const {
    constexpr int64_t kBeyond = 32;
    return group() * std::max(shape.width, shape.columns) + kBeyond;
  }
  int64_t scratch_numbers() const { return 4 * buffer_numbers(); }
};

struct AdaptiveAvgMaxPool2dLoops {
  // Maps [begin, end) of N * C. `scratch` holds scratch_numbers() numbers of
  // the compute type, at a multiple of 64 bytes.
  void (*contiguous)(const AdaptivePoolCall& call, int64_t begin, int64_t end,
                     void* scratch);
  // Groups [begin, end) of N * channel_groups(), channels innermost.
  void (*innermost)(const AdaptivePoolCall& call, int64_t begin, int64_t end);
};

PATHWAYS_VARIANT_TABLE(AdaptiveAvgMaxPool2dLoops,
                       adaptive_avg_max_pool2d_loops);

}  // namespace pathways
