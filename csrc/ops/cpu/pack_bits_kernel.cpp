#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <vector>

#include "../check.h"
#include "../stable.h"
#include "bit_rows.h"
#include "pack_bits_loops.h"

namespace pathways {
namespace {

// Words per task; a word is 64 elements of a mask.
constexpr int64_t kGrain = 512;

// Calls function(row, word, words) for parts of rows of `width` words: long
// rows are cut, short ones joined to tasks of about kGrain words.
template <typename Function>
void for_parts_of_rows(int64_t rows, int64_t width, const Function& function) {
  const int64_t parts = (width + kGrain - 1) / kGrain;
  const int64_t grain =
      std::max<int64_t>(1, kGrain / std::max<int64_t>(1, width));
  torch::stable::parallel_for(
      0, rows * parts, grain, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const int64_t word = (i % parts) * kGrain;
          function(i / parts, word, std::min(kGrain, width - word));
        }
      });
}

Tensor pack_bits_kernel(const Tensor& mask) {
  constexpr const char* op = "pack_bits";
  check_pack_bits(op, mask);
  const int64_t size = mask.size(1);
  const int64_t width = word_count(size);
  Tensor words = new_result(op, mask, {mask.size(0), width}, ScalarType::Long);
  const NumberFormat format{static_cast<int64_t>(mask.element_size()),
                            is_floating(mask.scalar_type())};
  const char* from = static_cast<const char*>(mask.const_data_ptr());
  uint64_t* to = static_cast<uint64_t*>(words.mutable_data_ptr());
  const int64_t row_stride = mask.stride(0);
  const int64_t stride = mask.stride(1);
  for_parts_of_rows(
      mask.size(0), width, [&](int64_t row, int64_t word, int64_t count) {
        const int64_t first = word * kWordBits;
        const int64_t element = row * row_stride + first * stride;
        pack_bits_loops().pack(format, from + element * format.bytes, stride,
                               std::min(size - first, count * kWordBits),
                               to + row * width + word);
      });
  return words;
}

Tensor unpack_bits_kernel(const Tensor& packed, int64_t size) {
  constexpr const char* op = "unpack_bits";
  check_words_of_size(op, packed, size);
  Tensor mask =
      new_result(op, packed, {packed.size(0), size}, ScalarType::Bool);
  const BitRows words(op, packed, "words");
  uint8_t* to = static_cast<uint8_t*>(mask.mutable_data_ptr());
  for_parts_of_rows(words.rows, words.matrix.width,
                    [&](int64_t row, int64_t word, int64_t count) {
                      const int64_t first = word * kWordBits;
                      pack_bits_loops().unpack(
                          words.matrix.row(row) + word,
                          std::min(size - first, count * kWordBits),
                          to + row * size + first);
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
