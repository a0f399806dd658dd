#include "pairwise_kernel.cuh"

namespace pathways::cuda {

void row_count(const PackedRows& rows, int64_t words_per_row, int32_t* count,
               const Device& device) {
  launch_row_count(rows, words_per_row, count, device);
}

void pairwise_intersection(const PackedRows& a, const PackedRows& b,
                           int64_t words_per_row, BitProduct product,
                           int32_t* out, const Device& device) {
  launch_pairwise_intersection(a, b, words_per_row, product, out, device);
}

void pairwise_iou(const PackedRows& a, const PackedRows& b,
                  int64_t words_per_row, BitProduct product,
                  const int32_t* count_a, const int32_t* count_b, float* out,
                  const Device& device) {
  launch_pairwise_iou(a, b, words_per_row, product, count_a, count_b, out,
                      device);
}

}  // namespace pathways::cuda
