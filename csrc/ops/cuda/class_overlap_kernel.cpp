#include <torch/csrc/stable/library.h>

#include <tuple>

#include "class_order.h"

namespace pathways::cuda {
namespace {

std::tuple<Tensor, Tensor> class_overlap_kernel(const Tensor& packed,
                                                const Tensor& labels,
                                                int64_t num_classes) {
  const char* op = "class_overlap";
  check_labels(op, packed, labels, num_classes);
  const BitProductWish wish = bit_product_wish(op);
  const LaunchScope scope(op, packed);
  const LabelOrder order = class_order(op, labels, num_classes);
  const Tensor words = with_dense_rows(packed);

  std::vector<int64_t> run_begin;
  std::vector<int64_t> group_begin;
  const std::vector<RowRun> runs =
      class_runs(class_begins(order, num_classes), kOverlapRows, &run_begin);
  const std::vector<RunRange> groups =
      group_runs(run_begin, kRunsPerGroup, &group_begin);
  std::vector<int64_t> pairs;
  for (int64_t c = 0; c < num_classes; ++c) {
    for (int64_t d = 0; d < num_classes; ++d) {
      pairs.push_back(c == d ? order.count(c) * (order.count(c) - 1) / 2
                             : order.count(c) * order.count(d));
    }
  }
  TableUpload upload;
  const int64_t order_at = upload.add_order(order, words.size(0));
  const int64_t runs_at = upload.add(runs);
  const int64_t groups_at = upload.add(groups);
  const int64_t run_begin_at = upload.add(run_begin);
  const int64_t group_begin_at = upload.add(group_begin);
  const Tensor sent = upload.send(words);

  OverlapTables tables{};
  tables.order = table_at<int64_t>(sent, order_at);
  tables.runs = table_at<RowRun>(sent, runs_at);
  tables.run_count = static_cast<int64_t>(runs.size());
  tables.groups = table_at<RunRange>(sent, groups_at);
  tables.group_count = static_cast<int64_t>(groups.size());
  tables.run_begin = table_at<int64_t>(sent, run_begin_at);
  tables.group_begin = table_at<int64_t>(sent, group_begin_at);

  const std::vector<int64_t> shape{num_classes, num_classes};
  // Sent before the kernels are launched: a copy waits for the stream.
  TableUpload pair_upload;
  pair_upload.add(pairs);
  const Tensor counted = torch::stable::view(pair_upload.send(words), shape);
  const std::vector<int64_t> partial_shape{tables.run_count *
                                           tables.group_count};
  const Tensor sums =
      torch::stable::new_empty(words, shape, ScalarType::Double);
  const Tensor partial =
      torch::stable::new_empty(words, partial_shape, ScalarType::Double);
  const Tensor counts = row_counts(words, scope.device());
  class_overlap(
      packed_rows(words), words.size(1),
      bit_product(op, wish, scope.device(), kOverlapRows, kOverlapRows),
      static_cast<const int32_t*>(counts.const_data_ptr()), tables, num_classes,
      static_cast<double*>(partial.mutable_data_ptr()),
      static_cast<double*>(sums.mutable_data_ptr()), scope.device());
  scope.check();
  return {sums, counted};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pathways, CUDA, m)
{
  m.impl("class_overlap", TORCH_BOX(&class_overlap_kernel));
}

}  // namespace pathways::cuda
