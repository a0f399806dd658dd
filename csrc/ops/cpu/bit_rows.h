#pragma once

// Tensors of packed words as the loops over bits see them, and memory for the
// tiles in which pairs of rows are compared.

#include <algorithm>
#include <cstdint>
#include <exception>
#include <memory>
#include <vector>

#include "../check.h"
#include "../stable.h"
#include "bit_tile.h"
#include "bit_tile_loops.h"
#include "fresh_memory.h"

namespace pathways {

// A result that nobody has written to yet.
inline Tensor new_result(const char* op, const Tensor& like,
                         const std::vector<int64_t>& shape, ScalarType type) {
  try {
    Tensor result = torch::stable::new_empty(like, shape, type);
    prefer_huge_pages(result);
    return result;
  } catch (const std::exception&) {
    // What torch says about it does not come through the stable interface.
    detail::fail(op, ": the result must fit into memory, got shape ",
                 shape_name(shape), " of ", dtype_name(type));
  }
}

// Rows may be slices of wider rows; they are copied only when the words of a
// row are not next to each other.
inline Tensor dense_rows(const char* op, const Tensor& words,
                         const char* name) {
  try {
    return with_dense_rows(words);
  } catch (const std::exception&) {
    detail::fail(op, ": ", name,
                 " must fit into memory when its words are put next to each "
                 "other, got shape ",
                 shape_name(words));
  }
}

struct BitRows {
  BitRows(const char* op, const Tensor& source, const char* name)
      : words(dense_rows(op, source, name)),
        rows(words.size(0)),
        matrix{static_cast<const uint64_t*>(words.const_data_ptr()),
               words.size(1), words.stride(0)} {}

  Tensor words;
  int64_t rows;
  BitMatrix matrix;
};

// Bits of each of `rows` rows.
inline std::vector<int32_t> row_sizes(const BitMatrix& matrix, int64_t rows) {
  std::vector<int32_t> sizes(static_cast<size_t>(rows + kBeyond));
  const int64_t grain =
      std::max<int64_t>(1, 16384 / std::max<int64_t>(1, matrix.width));
  torch::stable::parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
    bit_tile_loops().sizes(matrix, {begin, end - begin}, sizes.data() + begin);
  });
  return sizes;
}

// For tiles of at most as many rows as given. Not initialised.
class TileBuffer {
 public:
  TileBuffer(int64_t a_rows, int64_t b_rows, int64_t width) {
    const auto up = [](int64_t value) { return (value + 15) / 16 * 16; };
    a_rows = std::min(a_rows, kTileRows);
    b_rows = std::min(b_rows, kTileRows);
    const int64_t stride = up(b_rows) + kBeyond;
    const int64_t counts = up(a_rows) * stride / 2;
    const int64_t panels =
        panel_memory(a_rows, width) + panel_memory(b_rows, width);
    constexpr int64_t kLine = 64;
    const int64_t bytes = (counts + panels) * 8 + kLine;
    memory_.reset(new char[static_cast<size_t>(bytes)]);
    const auto begin = reinterpret_cast<uintptr_t>(memory_.get());
    // Panels on cache lines, so that no register of them lies in two.
    auto* words =
        reinterpret_cast<uint64_t*>((begin + kLine - 1) / kLine * kLine);
    tile_.row_panel = words;
    tile_.column_panel = words + panel_memory(a_rows, width);
    tile_.counts = reinterpret_cast<uint32_t*>(words + panels);
    tile_.stride = stride;
  }

  TileMemory& tile() { return tile_; }

 private:
  std::unique_ptr<char[]> memory_;
  TileMemory tile_;
};

}  // namespace pathways
