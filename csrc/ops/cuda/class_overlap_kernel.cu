#include "class_overlap_kernel.cuh"

namespace pathways::cuda {

void class_overlap(const PackedRows& rows, int64_t words_per_row,
                   BitProduct product, const int32_t* row_count,
                   const OverlapTables& tables, int64_t classes,
                   double* partial, double* out, const Device& device) {
  launch_class_overlap(rows, words_per_row, product, row_count, tables, classes,
                       partial, out, device);
}

}  // namespace pathways::cuda
