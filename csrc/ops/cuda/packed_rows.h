// Packed words as the CUDA kernels take them.
#pragma once

#include <cstdlib>

#include "../stable.h"
#include "launch_scope.h"

namespace pathways::cuda {

inline PackedRows packed_rows(const Tensor& words) {
  return {static_cast<const uint64_t*>(words.const_data_ptr()), words.stride(0),
          words.size(0)};
}

// What the user asks for, read again at every call. To be called before the
// first call into CUDA, as all checks.
inline BitProductWish bit_product_wish(const char* op) {
  const char* value = std::getenv(kBitProductVariable);
  BitProductWish wish{};
  PATHWAYS_CHECK(parse_bit_product_wish(value, &wish), op, ": ",
                 kBitProductVariable, " must be auto, popc or mma, got '",
                 value, "'");
  return wish;
}

inline BitProduct bit_product(const char* op, BitProductWish wish,
                              const Device& device, int64_t rows_a,
                              int64_t rows_b) {
  PATHWAYS_CHECK(
      wish != BitProductWish::kMma || has_binary_mma(device.code), op, ": ",
      kBitProductVariable,
      "=mma needs a GPU and a build of compute capability 8.0 or later, got a "
      "GPU of ",
      device.capability / 10, ".", device.capability % 10, " and code for ",
      device.code / 10, ".", device.code % 10);
  return choose_bit_product(wish, device.capability, device.code,
                            device.multiprocessors, rows_a, rows_b);
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
