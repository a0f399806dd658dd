#include "pack_bits_kernel.cuh"

namespace pathways::cuda {

void pack_bits(size_t element_size, bool floating, const void* mask,
               int64_t row_stride, int64_t column_stride, int64_t rows,
               int64_t size, uint64_t* words, const Device& device) {
  launch_pack_bits(element_size, floating, mask, row_stride, column_stride,
                   rows, size, words, device);
}

void unpack_bits(const uint64_t* words, int64_t row_stride, int64_t rows,
                 int64_t size, uint8_t* mask, const Device& device) {
  launch_unpack_bits(words, row_stride, rows, size, mask, device);
}

}  // namespace pathways::cuda
