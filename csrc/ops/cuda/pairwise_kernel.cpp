#include <torch/csrc/stable/library.h>

#include "packed_rows.h"

namespace pathways::cuda {
namespace {

Tensor pairwise_intersection_kernel(const Tensor& a_words,
                                    const Tensor& b_words) {
  const char* op = "pairwise_intersection";
  check_pairwise(op, a_words, b_words);
  const BitProductWish wish = bit_product_wish(op);
  const LaunchScope scope(op, a_words);
  const Tensor a = with_dense_rows(a_words);
  const Tensor b = with_dense_rows(b_words);
  const std::vector<int64_t> shape{a.size(0), b.size(0)};
  const Tensor output = torch::stable::new_empty(a, shape, ScalarType::Int);
  pairwise_intersection(
      packed_rows(a), packed_rows(b), a.size(1),
      bit_product(op, wish, scope.device(), a.size(0), b.size(0)),
      static_cast<int32_t*>(output.mutable_data_ptr()), scope.device());
  scope.check();
  return output;
}

Tensor pairwise_iou_kernel(const Tensor& a_words, const Tensor& b_words) {
  const char* op = "pairwise_iou";
  check_pairwise(op, a_words, b_words);
  const BitProductWish wish = bit_product_wish(op);
  const LaunchScope scope(op, a_words);
  const Tensor a = with_dense_rows(a_words);
  const Tensor b = with_dense_rows(b_words);
  const std::vector<int64_t> shape{a.size(0), b.size(0)};
  const Tensor output = torch::stable::new_empty(a, shape, ScalarType::Float);
  const Tensor count_a = row_counts(a, scope.device());
  const Tensor count_b = row_counts(b, scope.device());
  pairwise_iou(packed_rows(a), packed_rows(b), a.size(1),
               bit_product(op, wish, scope.device(), a.size(0), b.size(0)),
               static_cast<const int32_t*>(count_a.const_data_ptr()),
               static_cast<const int32_t*>(count_b.const_data_ptr()),
               static_cast<float*>(output.mutable_data_ptr()), scope.device());
  scope.check();
  return output;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pathways, CUDA, m)
{
  m.impl("pairwise_intersection", TORCH_BOX(&pairwise_intersection_kernel));
  m.impl("pairwise_iou", TORCH_BOX(&pairwise_iou_kernel));
}

}  // namespace pathways::cuda
