#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "../check.h"
#include "../stable.h"
#include "bit_rows.h"
#include "label_order.h"

namespace pathways {
namespace {

// Positions in class order that are of one class and in one tile.
struct Segment {
  int64_t label;
  int64_t begin;
  int64_t end;
};

// The segments of every tile: those of tile t are [first[t], first[t + 1]).
struct Segments {
  Segments(const LabelOrder& order, int64_t num_classes) {
    for (int64_t label = 0; label < num_classes; ++label) {
      for (int64_t begin = order.begin(label); begin < order.end(label);) {
        if (begin % kTileRows == 0) {
          first.push_back(static_cast<int64_t>(all.size()));
        }
        const int64_t border = (begin / kTileRows + 1) * kTileRows;
        const int64_t end = std::min(border, order.end(label));
        all.push_back({label, begin, end});
        begin = end;
      }
    }
    first.push_back(static_cast<int64_t>(all.size()));
  }

  const Segment* begin(int64_t tile) const {
    return all.data() + first[static_cast<size_t>(tile)];
  }
  const Segment* end(int64_t tile) const { return begin(tile + 1); }

  std::vector<Segment> all;
  std::vector<int64_t> first;
};

// Sums of the IoU by the classes of the two rows, from tiles of rows in class
// order. Every sum runs in an order fixed by the labels alone, so the result
// does not depend on the number of threads. A sum of doubles over P pairs is
// off by at most about P * 1e-16 relative.
struct Overlap {
  BitRows bits;
  BitMatrix matrix;  // in class order
  Segments segments;
  std::vector<int32_t> sizes;
  int64_t num_classes;
  double* sums;
  // The rows of sums of classes that began in an earlier tile, by tiles: the
  // row in `sums` belongs to the task of that one. (N / kTileRows) * K doubles,
  // never N * N.
  std::vector<double> partial;

  double* row_of_sums(int64_t tile, const Segment& segment) {
    const bool begun = segment.begin % kTileRows == 0 && tile > 0 &&
                       segments.begin(tile)[-1].label == segment.label;
    return begun ? partial.data() + tile * num_classes
                 : sums + segment.label * num_classes;
  }

  void add_tile(int64_t row, int64_t column, const TileMemory& tile) {
    const int64_t a_first = row * kTileRows;
    const int64_t b_first = column * kTileRows;
    for (const Segment* a = segments.begin(row); a != segments.end(row); ++a) {
      double* row_sums = row_of_sums(row, *a);
      const uint32_t* counts = tile.counts + (a->begin - a_first) * tile.stride;
      const Segment* b = row == column ? a : segments.begin(column);
      for (; b != segments.end(column); ++b) {
        row_sums[b->label] += bit_tile_loops().iou_sum(
            counts + (b->begin - b_first), tile.stride, sizes.data() + a->begin,
            a->end - a->begin, sizes.data() + b->begin, b->end - b->begin,
            a == b);
      }
    }
  }

  void run() {
    const int64_t tiles = tiles_of(bits.rows);
    torch::stable::parallel_for(0, tiles, 1, [&](int64_t first, int64_t last) {
      TileBuffer buffer(bits.rows, bits.rows, matrix.width);
      TileMemory& tile = buffer.tile();
      for (int64_t task = first; task < last; ++task) {
        // Early tiles see more rows behind them than late ones: take them
        // alternately from both ends.
        const int64_t row = task % 2 == 0 ? task / 2 : tiles - 1 - task / 2;
        for (int64_t column = row; column < tiles; ++column) {
          bit_tile_loops().differences(matrix, tile_rows(bits.rows, row),
                                       matrix, tile_rows(bits.rows, column),
                                       row == column, tile);
          add_tile(row, column, tile);
        }
      }
    });
    for (int64_t tile = 1; tile < tiles; ++tile) {
      const double* from = partial.data() + tile * num_classes;
      double* to = sums + segments.begin(tile)->label * num_classes;
      for (int64_t column = 0; column < num_classes; ++column) {
        to[column] += from[column];
      }
    }
  }
};

std::tuple<Tensor, Tensor> class_overlap_kernel(const Tensor& words,
                                                const Tensor& labels,
                                                int64_t num_classes) {
  constexpr const char* op = "class_overlap";
  check_labels(op, words, labels, num_classes);
  const LabelOrder order(op, labels, num_classes);
  const std::vector<int64_t> shape{num_classes, num_classes};
  Tensor sums = new_result(op, words, shape, ScalarType::Double);
  Tensor pairs = new_result(op, words, shape, ScalarType::Long);
  double* sum = static_cast<double*>(sums.mutable_data_ptr());
  int64_t* pair = static_cast<int64_t*>(pairs.mutable_data_ptr());
  std::fill(sum, sum + num_classes * num_classes, 0.0);

  BitRows bits(op, words, "words");
  BitMatrix matrix = bits.matrix;
  matrix.order = order.rows();
  std::vector<int32_t> sizes = row_sizes(matrix, bits.rows);
  const auto partial = static_cast<size_t>(tiles_of(bits.rows) * num_classes);
  Overlap overlap{std::move(bits),
                  matrix,
                  Segments(order, num_classes),
                  std::move(sizes),
                  num_classes,
                  sum,
                  std::vector<double>(partial, 0.0)};
  overlap.run();

  for (int64_t row = 0; row < num_classes; ++row) {
    const int64_t count = order.count(row);
    for (int64_t column = 0; column < num_classes; ++column) {
      pair[row * num_classes + column] =
          row == column ? count * (count - 1) / 2 : count * order.count(column);
      if (column < row) {
        sum[row * num_classes + column] = sum[column * num_classes + row];
      }
    }
  }
  return {sums, pairs};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pathways, CPU, m)
{
  m.impl("class_overlap", TORCH_BOX(&class_overlap_kernel));
}

}  // namespace pathways
