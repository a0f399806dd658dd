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

// Rows of one class that a task compares with everything behind them. A block
// owns one row of partial sums, so the extra memory is (N / kBlock + K) * K
// doubles, never N * N.
constexpr int64_t kBlock = 64;

struct Block {
  int64_t label;
  int64_t begin;  // positions in class order
  int64_t end;
};

// Every sum runs in an order fixed by the labels alone, so the result does not
// depend on the number of threads. A sum of doubles over P pairs is off by at
// most about P * 1e-16 relative.
std::tuple<Tensor, Tensor> class_overlap_kernel(const Tensor& words,
                                                const Tensor& labels,
                                                int64_t num_classes) {
  check_labels("class_overlap", words, labels, num_classes);
  const BitRows bits(words);
  const LabelOrder order("class_overlap", labels, num_classes);
  const std::vector<int64_t> sizes = row_sizes(bits);

  std::vector<Block> blocks;
  for (int64_t label = 0; label < num_classes; ++label) {
    for (int64_t begin = order.begin(label); begin < order.end(label);
         begin += kBlock) {
      blocks.push_back(
          {label, begin, std::min(begin + kBlock, order.end(label))});
    }
  }
  const int64_t num_blocks = static_cast<int64_t>(blocks.size());
  std::vector<double> partial(static_cast<size_t>(num_blocks * num_classes),
                              0.0);
  torch::stable::parallel_for(
      0, num_blocks, 1, [&](int64_t first, int64_t last) {
        for (int64_t task = first; task < last; ++task) {
          // Early blocks see more rows behind them than late ones: take them
          // alternately from both ends.
          const int64_t index =
              task % 2 == 0 ? task / 2 : num_blocks - 1 - task / 2;
          const Block& block = blocks[static_cast<size_t>(index)];
          double* sums = partial.data() + index * num_classes;
          for (int64_t i = block.begin; i < block.end; ++i) {
            const int64_t row = order.row(i);
            for (int64_t label = block.label; label < num_classes; ++label) {
              double sum = 0.0;
              for (int64_t j = std::max(i + 1, order.begin(label));
                   j < order.end(label); ++j) {
                const int64_t other = order.row(j);
                const int64_t shared = intersection_count(
                    bits.row(row), bits.row(other), bits.width);
                sum += iou_from_counts(shared, sizes[static_cast<size_t>(row)],
                                       sizes[static_cast<size_t>(other)]);
              }
              sums[label] += sum;
            }
          }
        }
      });

  const std::vector<int64_t> shape{num_classes, num_classes};
  Tensor sums = torch::stable::new_empty(words, shape, ScalarType::Double);
  Tensor pairs = torch::stable::new_empty(words, shape, ScalarType::Long);
  double* sum = static_cast<double*>(sums.mutable_data_ptr());
  int64_t* pair = static_cast<int64_t*>(pairs.mutable_data_ptr());
  std::fill(sum, sum + num_classes * num_classes, 0.0);
  for (int64_t index = 0; index < num_blocks; ++index) {
    const int64_t row = blocks[static_cast<size_t>(index)].label;
    for (int64_t column = row; column < num_classes; ++column) {
      sum[row * num_classes + column] +=
          partial[static_cast<size_t>(index * num_classes + column)];
    }
  }
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
