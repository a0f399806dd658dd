#pragma once

// Rows of packed words and the tiles in which pairs of them are compared.

#include <algorithm>
#include <cstdint>

namespace pathways {

// Rows of `width` words, `stride` words apart; in the order of `order` where
// there is one.
struct BitMatrix {
  const uint64_t* words;
  int64_t width;
  int64_t stride;
  const int64_t* order = nullptr;

  const uint64_t* row(int64_t n) const {
    return words + (order == nullptr ? n : order[n]) * stride;
  }
};

// Rows of a matrix, from `first` on.
struct RowRange {
  int64_t first;
  int64_t count;
};

// Rows of either side in a tile. The sums of class_overlap run by tiles, so
// that another number would change their last bits.
constexpr int64_t kTileRows = 128;
// Words that are compared at a time: with these, the panels of a tile stay in
// the second-level cache and one panel of b in the first.
constexpr int64_t kTileWords = 128;
// Loops may touch as many numbers behind a row of counts or sizes.
constexpr int64_t kBeyond = 16;

constexpr int64_t tiles_of(int64_t rows) {
  return (rows + kTileRows - 1) / kTileRows;
}

constexpr RowRange tile_rows(int64_t rows, int64_t tile) {
  const int64_t first = tile * kTileRows;
  return {first, std::min(kTileRows, rows - first)};
}

// The counts of a tile, and room for the panels they are computed from. For
// products of the same two matrices only: where whole rows of a fit into the
// panel, it is kept for the next tile of the same rows.
struct TileMemory {
  uint32_t* counts = nullptr;
  int64_t stride = 0;  // of counts
  uint64_t* row_panel = nullptr;
  uint64_t* column_panel = nullptr;
  int64_t first_row = -1;  // of those in row_panel, as long as it can be kept
};

// Words of the panels of `rows` rows: whole blocks, and up to two words each.
constexpr int64_t panel_memory(int64_t rows, int64_t width) {
  const auto up = [](int64_t value) { return (value + 15) / 16 * 16; };
  return up(rows) * 2 * up(std::min(width, kTileWords));
}

}  // namespace pathways
