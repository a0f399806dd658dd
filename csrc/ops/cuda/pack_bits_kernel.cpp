#include <torch/csrc/stable/library.h>

#include "packed_rows.h"

namespace pathways::cuda {
namespace {

Tensor pack_bits_kernel(const Tensor& mask) {
  check_pack_bits("pack_bits", mask);
  const LaunchScope scope("pack_bits", mask);
  const std::vector<int64_t> shape{mask.size(0), word_count(mask.size(1))};
  const Tensor words = torch::stable::new_empty(mask, shape, ScalarType::Long);
  pack_bits(mask.element_size(), is_floating(mask.scalar_type()),
            mask.const_data_ptr(), mask.stride(0), mask.stride(1), mask.size(0),
            mask.size(1), static_cast<uint64_t*>(words.mutable_data_ptr()),
            scope.device());
  scope.check();
  return words;
}

Tensor unpack_bits_kernel(const Tensor& packed, int64_t size) {
  check_words_of_size("unpack_bits", packed, size);
  const LaunchScope scope("unpack_bits", packed);
  const Tensor words = with_dense_rows(packed);
  const std::vector<int64_t> shape{words.size(0), size};
  const Tensor mask = torch::stable::new_empty(words, shape, ScalarType::Bool);
  const PackedRows rows = packed_rows(words);
  unpack_bits(rows.words, rows.stride, rows.rows, size,
              static_cast<uint8_t*>(mask.mutable_data_ptr()), scope.device());
  scope.check();
  return mask;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pathways, CUDA, m)
{
  m.impl("pack_bits", TORCH_BOX(&pack_bits_kernel));
  m.impl("unpack_bits", TORCH_BOX(&unpack_bits_kernel));
}

}  // namespace pathways::cuda
