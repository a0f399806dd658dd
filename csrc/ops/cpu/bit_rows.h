#pragma once

// Rows of packed words on the CPU and their population counts.

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../check.h"
#include "../stable.h"
#include "bit_count.h"

namespace pathways {

struct BitRows {
  explicit BitRows(const Tensor& source)
      : words(with_dense_rows(source)),
        data(static_cast<const uint64_t*>(words.const_data_ptr())),
        rows(words.size(0)),
        width(words.size(1)),
        stride(words.stride(0)) {}

  const uint64_t* row(int64_t n) const { return data + n * stride; }

  Tensor words;
  const uint64_t* data;
  int64_t rows;
  int64_t width;
  int64_t stride;
};

inline int64_t row_size(const uint64_t* row, int64_t width) {
  return intersection_count(row, row, width);
}

// |row| for every row.
inline std::vector<int64_t> row_sizes(const BitRows& bits) {
  std::vector<int64_t> sizes(static_cast<size_t>(bits.rows));
  const int64_t grain =
      std::max<int64_t>(1, 16384 / std::max<int64_t>(1, bits.width));
  torch::stable::parallel_for(
      0, bits.rows, grain, [&](int64_t begin, int64_t end) {
        for (int64_t n = begin; n < end; ++n) {
          sizes[static_cast<size_t>(n)] = row_size(bits.row(n), bits.width);
        }
      });
  return sizes;
}

}  // namespace pathways
