#pragma once

// The shape of adaptive pooling: maps [N, C, H, W] in one of two memory orders,
// to a grid of cells. Cells are those of torch: they overlap where the grid
// does not divide the map, and repeat where it is finer than the map.

#include <cstdint>

#include "macros.h"

namespace pathways {

struct PoolShape {
  int64_t batch = 0;
  int64_t channels = 0;
  int64_t height = 1;  // of the map
  int64_t width = 1;
  int64_t rows = 1;  // of the grid
  int64_t columns = 1;
  bool channel_innermost = false;  // N, H, W, C instead of N, C, H, W

  PATHWAYS_HOST_DEVICE int64_t space() const { return height * width; }
  PATHWAYS_HOST_DEVICE int64_t cells() const { return rows * columns; }
  PATHWAYS_HOST_DEVICE int64_t planes() const { return batch * channels; }

  bool is_identity() const { return rows == height && columns == width; }

  // A column of numbers, contiguous, is as good as a row, which has them next
  // to each other for the lanes.
  PoolShape folded() const {
    PoolShape result = *this;
    if (width == 1 && columns == 1 && !channel_innermost) {
      result.width = height;
      result.columns = rows;
      result.height = result.rows = 1;
    }
    return result;
  }
};

// Cell i of `cells` over `size` numbers: floor(i * size / cells) up to, without
// it, ceil((i + 1) * size / cells).
PATHWAYS_HOST_DEVICE constexpr int64_t cell_begin(int64_t i, int64_t size,
                                                  int64_t cells) {
  return i * size / cells;
}

PATHWAYS_HOST_DEVICE constexpr int64_t cell_end(int64_t i, int64_t size,
                                                int64_t cells) {
  return ((i + 1) * size + cells - 1) / cells;
}

}  // namespace pathways
