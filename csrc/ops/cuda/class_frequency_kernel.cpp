#include <torch/csrc/stable/library.h>

#include "class_order.h"

namespace pathways::cuda {
namespace {

Tensor class_frequency_kernel(const Tensor& packed, const Tensor& labels,
                              int64_t num_classes, int64_t size) {
  const char* op = "class_frequency";
  check_class_frequency(op, packed, labels, num_classes, size);
  const LaunchScope scope(op, packed);
  const LabelOrder order = class_order(op, labels, num_classes);
  const Tensor words = with_dense_rows(packed);
  const std::vector<RowRun> runs =
      class_runs(class_begins(order, num_classes), kFrequencyRows);
  TableUpload upload;
  const int64_t order_at = upload.add_order(order, words.size(0));
  const int64_t runs_at = upload.add(runs);
  const Tensor sent = upload.send(words);
  const std::vector<int64_t> shape{num_classes, size};
  const Tensor output =
      torch::stable::new_zeros(words, shape, ScalarType::Long);
  class_frequency(
      packed_rows(words), size, table_at<int64_t>(sent, order_at),
      table_at<RowRun>(sent, runs_at), static_cast<int64_t>(runs.size()),
      static_cast<int64_t*>(output.mutable_data_ptr()), scope.device());
  scope.check();
  return output;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pathways, CUDA, m)
{
  m.impl("class_frequency", TORCH_BOX(&class_frequency_kernel));
}

}  // namespace pathways::cuda
