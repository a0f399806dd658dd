#include "class_frequency_kernel.cuh"

namespace pathways::cuda {

void class_frequency(const PackedRows& rows, int64_t size, const int64_t* order,
                     const RowRun* runs, int64_t run_count, int64_t* out,
                     const Device& device) {
  launch_class_frequency(rows, size, order, runs, run_count, out, device);
}

}  // namespace pathways::cuda
