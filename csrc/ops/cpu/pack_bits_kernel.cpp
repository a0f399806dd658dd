#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "../check.h"
#include "../stable.h"
#include "dispatch.h"

namespace pathways {
namespace {

// Words per task; a word is 64 mask elements.
constexpr int64_t kGrain = 512;

template <typename T>
void pack_rows(const Tensor& mask, Tensor& words) {
  const T* from = static_cast<const T*>(mask.const_data_ptr());
  uint64_t* to = static_cast<uint64_t*>(words.mutable_data_ptr());
  const int64_t size = mask.size(1);
  const int64_t width = words.size(1);
  const int64_t row_stride = mask.stride(0);
  const int64_t stride = mask.stride(1);
  torch::stable::parallel_for(
      0, words.numel(), kGrain, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const int64_t first = (i % width) * kWordBits;
          const int64_t count = std::min(kWordBits, size - first);
          const T* bits = from + (i / width) * row_stride + first * stride;
          uint64_t word = 0;
          for (int64_t bit = 0; bit < count; ++bit) {
            word |= static_cast<uint64_t>(bits[bit * stride] != T(0)) << bit;
          }
          to[i] = word;
        }
      });
}

Tensor pack_bits_kernel(const Tensor& mask) {
  check_pack_bits("pack_bits", mask);
  const std::vector<int64_t> shape{mask.size(0), word_count(mask.size(1))};
  Tensor words = torch::stable::new_empty(mask, shape, ScalarType::Long);
  switch (mask.scalar_type()) {
    case ScalarType::Bool:  // stored as 0 or 1 in a byte
    case ScalarType::Byte:
    case ScalarType::Char: pack_rows<uint8_t>(mask, words); break;
    case ScalarType::Short: pack_rows<int16_t>(mask, words); break;
    case ScalarType::Int: pack_rows<int32_t>(mask, words); break;
    case ScalarType::Long: pack_rows<int64_t>(mask, words); break;
    case ScalarType::Float: pack_rows<float>(mask, words); break;
    case ScalarType::Double: pack_rows<double>(mask, words); break;
    case ScalarType::BFloat16:
      pack_rows<torch::headeronly::BFloat16>(mask, words);
      break;
    default: pack_rows<torch::headeronly::Half>(mask, words); break;
  }
  return words;
}

Tensor unpack_bits_kernel(const Tensor& packed, int64_t size) {
  check_words_of_size("unpack_bits", packed, size);
  const Tensor words = with_dense_rows(packed);
  const std::vector<int64_t> shape{words.size(0), size};
  Tensor mask = torch::stable::new_empty(words, shape, ScalarType::Bool);
  const uint64_t* from = static_cast<const uint64_t*>(words.const_data_ptr());
  uint8_t* to = static_cast<uint8_t*>(mask.mutable_data_ptr());
  const int64_t width = words.size(1);
  const int64_t row_stride = words.stride(0);
  torch::stable::parallel_for(
      0, words.size(0) * width, kGrain, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const int64_t row = i / width;
          const int64_t first = (i % width) * kWordBits;
          const int64_t count = std::min(kWordBits, size - first);
          const uint64_t word = from[row * row_stride + i % width];
          uint8_t* bits = to + row * size + first;
          for (int64_t bit = 0; bit < count; ++bit) {
            bits[bit] = static_cast<uint8_t>((word >> bit) & 1u);
          }
        }
      });
  return mask;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pathways, CPU, m)
{
  m.impl("pack_bits", TORCH_BOX(&pack_bits_kernel));
  m.impl("unpack_bits", TORCH_BOX(&unpack_bits_kernel));
}

}  // namespace pathways
