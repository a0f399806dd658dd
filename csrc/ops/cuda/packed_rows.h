// Packed words as the CUDA kernels take them.
#pragma once

#include "../stable.h"
#include "launch_scope.h"

namespace pathways::cuda {

inline PackedRows packed_rows(const Tensor& words) {
  return {static_cast<const uint64_t*>(words.const_data_ptr()), words.stride(0),
          words.size(0)};
}

// Neurons in each row, int32 [N].
inline Tensor row_counts(const Tensor& words, const Device& device) {
  const std::vector<int64_t> shape{words.size(0)};
  const Tensor counts = torch::stable::new_empty(words, shape, ScalarType::Int);
  row_count(packed_rows(words), words.size(1),
            static_cast<int32_t*>(counts.mutable_data_ptr()), device);
  return counts;
}

}  // namespace pathways::cuda
