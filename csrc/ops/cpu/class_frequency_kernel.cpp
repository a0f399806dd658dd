#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <vector>

#include "../check.h"
#include "../stable.h"
#include "bit_rows.h"
#include "label_order.h"

namespace pathways {
namespace {

// Columns of words per task: one cache line, so that threads share none.
constexpr int64_t kColumns = 8;

Tensor class_frequency_kernel(const Tensor& words, const Tensor& labels,
                              int64_t num_classes, int64_t size) {
  check_labels("class_frequency", words, labels, num_classes);
  check_words_of_size("class_frequency", words, size);
  const BitRows bits(words);
  const LabelOrder order("class_frequency", labels, num_classes);
  const std::vector<int64_t> shape{num_classes, size};
  Tensor output = torch::stable::new_empty(words, shape, ScalarType::Long);
  int64_t* counts = static_cast<int64_t*>(output.mutable_data_ptr());
  const int64_t tasks = (bits.width + kColumns - 1) / kColumns;
  torch::stable::parallel_for(
      0, num_classes * tasks, 1, [&](int64_t first, int64_t last) {
        for (int64_t task = first; task < last; ++task) {
          const int64_t label = task / tasks;
          const int64_t begin = (task % tasks) * kColumns;
          const int64_t end = std::min(begin + kColumns, bits.width);
          int64_t* row_counts = counts + label * size;
          std::fill(row_counts + begin * kWordBits,
                    row_counts + std::min(end * kWordBits, size), int64_t{0});
          for (int64_t i = order.begin(label); i < order.end(label); ++i) {
            const uint64_t* row = bits.row(order.row(i));
            for (int64_t w = begin; w < end; ++w) {
              // Bits behind the last neuron are not counted, whatever they
              // hold.
              uint64_t word =
                  w == bits.width - 1 ? row[w] & tail_mask(size) : row[w];
              for (; word != 0; word &= word - 1) {
                ++row_counts[w * kWordBits + __builtin_ctzll(word)];
              }
            }
          }
        }
      });
  return output;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pathways, CPU, m)
{
  m.impl("class_frequency", TORCH_BOX(&class_frequency_kernel));
}

}  // namespace pathways
