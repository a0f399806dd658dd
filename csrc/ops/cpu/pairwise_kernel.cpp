#include <torch/csrc/stable/library.h>

#include <cstring>
#include <type_traits>
#include <vector>

#include "../check.h"
#include "../stable.h"
#include "bit_rows.h"

namespace pathways {
namespace {

// A tile of the result, by tiles.
struct TileIndex {
  int64_t row;
  int64_t column;
};

// Number `index` of the tiles on and above the diagonal. Row q from above and
// row q from below have tiles + 1 of them together, wherever q is.
TileIndex upper_tile(int64_t tiles, int64_t index) {
  const int64_t q = index / (tiles + 1);
  const int64_t rest = index % (tiles + 1);
  if (rest < tiles - q) {
    return {q, q + rest};
  }
  const int64_t row = tiles - 1 - q;
  return {row, row + rest - (tiles - q)};
}

template <typename Out>
struct Pairwise {
  BitRows a;
  BitRows b;
  bool same;  // a and b are the same rows: half of the work is enough
  std::vector<int32_t> a_sizes;
  std::vector<int32_t> b_sizes;  // empty when `same`
  Out* result;

  const int32_t* sizes_of_b() const {
    return same ? a_sizes.data() : b_sizes.data();
  }

  void write_row(const uint32_t* counts, int64_t row, RowRange columns,
                 Out* to) const {
    const int32_t size = a_sizes[static_cast<size_t>(row)];
    const int32_t* sizes = sizes_of_b() + columns.first;
    if constexpr (std::is_floating_point_v<Out>) {
      bit_tile_loops().ious(counts, size, sizes, columns.count, to);
    } else {
      bit_tile_loops().intersections(counts, size, sizes, columns.count, to);
    }
  }

  Out* at(int64_t row, int64_t column) const {
    return result + row * b.rows + column;
  }

  // A tile above the diagonal, and its mirror image below. The results are
  // made in the place of the counts, from where both are copied.
  void write_twice(const TileMemory& tile, RowRange rows,
                   RowRange columns) const {
    const bool diagonal = rows.first == columns.first;
    for (int64_t r = 0; r < rows.count; ++r) {
      const int64_t skip = diagonal ? r : 0;
      uint32_t* counts = tile.counts + r * tile.stride + skip;
      const RowRange part{columns.first + skip, columns.count - skip};
      write_row(counts, rows.first + r, part, reinterpret_cast<Out*>(counts));
      std::memcpy(at(rows.first + r, part.first), counts,
                  static_cast<size_t>(part.count) * sizeof(Out));
    }
    if (!diagonal) {
      bit_tile_loops().transpose(
          tile.counts, tile.stride, rows.count, columns.count,
          reinterpret_cast<uint32_t*>(at(columns.first, rows.first)), b.rows);
      return;
    }
    for (int64_t r = 1; r < rows.count; ++r) {
      for (int64_t c = 0; c < r; ++c) {
        *at(rows.first + r, rows.first + c) =
            *at(rows.first + c, rows.first + r);
      }
    }
  }

  void run() const {
    const int64_t tiles = tiles_of(a.rows);
    const int64_t columns = tiles_of(b.rows);
    const int64_t count = same ? tiles * (tiles + 1) / 2 : tiles * columns;
    torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
      TileBuffer buffer(a.rows, b.rows, a.matrix.width);
      TileMemory& tile = buffer.tile();
      for (int64_t i = begin; i < end; ++i) {
        const TileIndex index =
            same ? upper_tile(tiles, i) : TileIndex{i / columns, i % columns};
        const RowRange a_rows = tile_rows(a.rows, index.row);
        const RowRange b_rows = tile_rows(b.rows, index.column);
        bit_tile_loops().differences(a.matrix, a_rows, b.matrix, b_rows,
                                     same && index.row == index.column, tile);
        if (same) {
          write_twice(tile, a_rows, b_rows);
          continue;
        }
        for (int64_t r = 0; r < a_rows.count; ++r) {
          write_row(tile.counts + r * tile.stride, a_rows.first + r, b_rows,
                    at(a_rows.first + r, b_rows.first));
        }
      }
    });
  }
};

bool same_rows(const BitRows& a, const BitRows& b) {
  return a.matrix.words == b.matrix.words && a.rows == b.rows &&
         (a.matrix.stride == b.matrix.stride || a.rows <= 1);
}

template <typename Out>
Tensor pairwise(const char* op, const Tensor& a_words, const Tensor& b_words,
                ScalarType type) {
  check_pairwise(op, a_words, b_words);
  Tensor output =
      new_result(op, a_words, {a_words.size(0), b_words.size(0)}, type);
  BitRows a(op, a_words, "a");
  BitRows b(op, b_words, "b");
  const bool same = same_rows(a, b);
  std::vector<int32_t> a_sizes = row_sizes(a.matrix, a.rows);
  std::vector<int32_t> b_sizes =
      same ? std::vector<int32_t>() : row_sizes(b.matrix, b.rows);
  const Pairwise<Out> task{std::move(a),
                           std::move(b),
                           same,
                           std::move(a_sizes),
                           std::move(b_sizes),
                           static_cast<Out*>(output.mutable_data_ptr())};
  task.run();
  return output;
}

Tensor pairwise_intersection_kernel(const Tensor& a, const Tensor& b) {
  return pairwise<int32_t>("pairwise_intersection", a, b, ScalarType::Int);
}

Tensor pairwise_iou_kernel(const Tensor& a, const Tensor& b) {
  return pairwise<float>("pairwise_iou", a, b, ScalarType::Float);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pathways, CPU, m)
{
  m.impl("pairwise_intersection", TORCH_BOX(&pairwise_intersection_kernel));
  m.impl("pairwise_iou", TORCH_BOX(&pairwise_iou_kernel));
}

}  // namespace pathways
