#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <vector>

#include "../check.h"
#include "../stable.h"
#include "bit_rows.h"
#include "class_frequency_loops.h"
#include "label_order.h"

namespace pathways {
namespace {

Tensor class_frequency_kernel(const Tensor& words, const Tensor& labels,
                              int64_t num_classes, int64_t size) {
  constexpr const char* op = "class_frequency";
  check_class_frequency(op, words, labels, num_classes, size);
  const LabelOrder order(op, labels, num_classes);
  Tensor output = new_result(op, words, {num_classes, size}, ScalarType::Long);
  const BitRows bits(op, words, "words");
  BitMatrix matrix = bits.matrix;
  matrix.order = order.rows();
  int64_t* counts = static_cast<int64_t*>(output.mutable_data_ptr());
  const int64_t parts = (matrix.width + kFrequencyWords - 1) / kFrequencyWords;
  torch::stable::parallel_for(
      0, num_classes * parts, 1, [&](int64_t first, int64_t last) {
        for (int64_t task = first; task < last; ++task) {
          const int64_t label = task / parts;
          const int64_t word = (task % parts) * kFrequencyWords;
          const int64_t bit = word * kWordBits;
          const int64_t count =
              std::min(kFrequencyWords * kWordBits, size - bit);
          int64_t* to = counts + label * size + bit;
          std::fill(to, to + count, int64_t{0});
          class_frequency_loops().add(
              matrix, {order.begin(label), order.count(label)}, word,
              std::min(kFrequencyWords, matrix.width - word), count, to);
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
