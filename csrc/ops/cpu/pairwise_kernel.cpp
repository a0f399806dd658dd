#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <type_traits>

#include "../check.h"
#include "../stable.h"
#include "bit_rows.h"

namespace pathways {
namespace {

// Words compared per task, about 10 us with plain popcounts.
constexpr int64_t kGrainWords = 16384;

// One row of the result per row of `a`: counts first, one division at the end.
template <typename Out>
Tensor pairwise(const char* op, const Tensor& a_words, const Tensor& b_words,
                ScalarType type) {
  check_pairwise(op, a_words, b_words);
  const BitRows a(a_words);
  const BitRows b(b_words);
  const std::vector<int64_t> shape{a.rows, b.rows};
  Tensor output = torch::stable::new_empty(a.words, shape, type);
  Out* to = static_cast<Out*>(output.mutable_data_ptr());
  constexpr bool kIou = std::is_floating_point_v<Out>;
  const std::vector<int64_t> a_sizes =
      kIou ? row_sizes(a) : std::vector<int64_t>();
  const std::vector<int64_t> b_sizes =
      kIou ? row_sizes(b) : std::vector<int64_t>();
  const int64_t grain =
      std::max<int64_t>(1, kGrainWords / std::max<int64_t>(1, a.width));
  torch::stable::parallel_for(
      0, a.rows * b.rows, grain, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const int64_t n = i / b.rows;
          const int64_t m = i % b.rows;
          const int64_t shared =
              intersection_count(a.row(n), b.row(m), a.width);
          if constexpr (kIou) {
            to[i] = iou_from_counts_float(shared, a_sizes[n], b_sizes[m]);
          } else {
            to[i] = static_cast<Out>(shared);
          }
        }
      });
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
