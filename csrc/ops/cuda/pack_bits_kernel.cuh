// Bodies of pack_bits and unpack_bits: [N, D] 0/1 values <-> ceil(D / 64)
// words per row, neuron d in bit d % 64 of word d / 64, tail bits zero.
#pragma once

#include "../../core/bits.h"
#include "common.cuh"

namespace pathways::cuda {

// Any element type is read as the unsigned integer of its size; `kNonzero`
// holds the bits that make it nonzero (all of them for integers, all but the
// sign for floating point).
template <class Bits, Bits kNonzero>
__device__ __forceinline__ bool is_set(Bits value) {
  return (value & kNonzero) != 0;
}

// Rows with unit stride whose starts are 16-byte aligned: a thread reads 16
// bytes, and the lanes that hold one word join their bits.
template <class Bits, Bits kNonzero>
__global__ void __launch_bounds__(kStreamThreads, kStreamBlocks)
    pack_bits_kernel(const Bits* __restrict__ mask, int64_t row_stride,
                     int64_t size, int64_t rows, Radix radix, Digits step,
                     uint64_t* __restrict__ words) {
  constexpr int kElements = kVectorBytes / sizeof(Bits);
  constexpr int kLanesPerWord = 64 / kElements;
  const int64_t pieces = rows * radix.middle * kLanesPerWord;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kStreamThreads;
  int64_t first = static_cast<int64_t>(blockIdx.x) * kStreamThreads;
  Digits at = radix.split(first + threadIdx.x);
  // The bound is the same for the whole block: every lane meets every shuffle.
  for (; first < pieces; first += stride, at = radix.add(at, step)) {
    const int64_t piece = first + threadIdx.x;
    const int position = static_cast<int>(at.r) * kElements;
    uint64_t bits = 0;
    if (piece < pieces) {
      const int64_t column = at.b * 64 + position;
      const Bits* from = mask + at.a * row_stride + column;
      if (column + kElements <= size) {
        const auto values = load_vector<Bits, kElements>(from);
#pragma unroll
        for (int k = 0; k < kElements; ++k)
          bits |= static_cast<uint64_t>(is_set<Bits, kNonzero>(values.value[k]))
                  << k;
      } else {
        for (int k = 0; column + k < size && k < kElements; ++k)
          bits |= static_cast<uint64_t>(is_set<Bits, kNonzero>(from[k])) << k;
      }
    }
    bits <<= position;
#pragma unroll
    for (int lane = 1; lane < kLanesPerWord; lane *= 2)
      bits |= __shfl_xor_sync(kFullMask, bits, lane);
    if (at.r == 0 && piece < pieces)
      words[at.a * radix.middle + at.b] = bits;
  }
}

// Any strides: a warp votes on 64 neurons at a time and writes 32 words.
template <class Bits, Bits kNonzero>
__global__ void __launch_bounds__(kStreamThreads, kStreamBlocks)
    pack_bits_strided_kernel(const Bits* __restrict__ mask, int64_t row_stride,
                             int64_t column_stride, int64_t size, int64_t rows,
                             int64_t words_per_row,
                             uint64_t* __restrict__ words) {
  const int lane = threadIdx.x % kWarpSize;
  constexpr int kWarps = kStreamThreads / kWarpSize;
  const int64_t warp =
      static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarpSize;
  const int64_t total = rows * words_per_row;
  for (int64_t first = warp * kWarpSize; first < total;
       first += static_cast<int64_t>(gridDim.x) * kWarps * kWarpSize) {
    int64_t row = first / words_per_row;
    int64_t word = first % words_per_row;
    uint64_t mine = 0;
    for (int k = 0; k < kWarpSize && first + k < total; ++k) {
      const int64_t column = word * 64 + lane;
      const Bits* from = mask + row * row_stride;
      const bool low =
          column < size && is_set<Bits, kNonzero>(from[column * column_stride]);
      const bool high =
          column + kWarpSize < size &&
          is_set<Bits, kNonzero>(from[(column + kWarpSize) * column_stride]);
      const uint64_t low_bits = __ballot_sync(kFullMask, low);
      const uint64_t high_bits = __ballot_sync(kFullMask, high);
      if (lane == k)
        mine = low_bits | high_bits << 32;
      if (++word == words_per_row) {
        word = 0;
        ++row;
      }
    }
    if (first + lane < total)
      words[first + lane] = mine;
  }
}

// Sixteen neurons of a row from `column` on, as the low bits of the result.
__device__ __forceinline__ uint32_t row_window(const uint64_t* row,
                                               int64_t column,
                                               int64_t words_per_row) {
  const int64_t word = column / 64;
  const int shift = static_cast<int>(column % 64);
  uint64_t bits = row[word] >> shift;
  if (shift > 48 && word + 1 < words_per_row)
    bits |= row[word + 1] << (64 - shift);
  return static_cast<uint32_t>(bits) & 0xffffu;
}

// Four bits to four bytes of 0 or 1: the product puts bit k at bit 8 k.
__device__ __forceinline__ uint32_t spread_bits(uint32_t nibble) {
  return (nibble * 0x00204081u) & 0x01010101u;
}

// The output is one dense run of rows * size bytes; a thread writes 16 of
// them, which may end one row and begin the next.
__global__ void __launch_bounds__(kStreamThreads, kStreamBlocks)
    unpack_bits_kernel(const uint64_t* __restrict__ words, int64_t row_stride,
                       int64_t words_per_row, int64_t rows, Radix radix,
                       Digits step, uint8_t* __restrict__ mask) {
  const int64_t size = radix.inner;
  const int64_t total = rows * size;
  const int64_t stride =
      static_cast<int64_t>(gridDim.x) * kStreamThreads * kVectorBytes;
  int64_t first =
      (static_cast<int64_t>(blockIdx.x) * kStreamThreads + threadIdx.x) *
      kVectorBytes;
  if (first >= total)
    return;
  Digits at = radix.split(first);
  for (; first < total; first += stride, at = radix.add(at, step)) {
    const uint64_t* row = words + at.b * row_stride;
    if (at.r + kVectorBytes <= size) {
      const uint32_t bits = row_window(row, at.r, words_per_row);
      Vector<uint32_t, 4> bytes;
#pragma unroll
      for (int k = 0; k < 4; ++k)
        bytes.value[k] = spread_bits(bits >> (4 * k) & 0xfu);
      store_vector(reinterpret_cast<uint32_t*>(mask + first), bytes);
    } else {
      int64_t column = at.r;
      for (int k = 0; k < kVectorBytes && first + k < total; ++k) {
        mask[first + k] =
            static_cast<uint8_t>(row[column / 64] >> (column % 64) & 1);
        if (++column == size) {
          column = 0;
          row += row_stride;
        }
      }
    }
  }
}

template <class Bits, Bits kNonzero>
void launch_pack_bits(const Bits* mask, int64_t row_stride,
                      int64_t column_stride, int64_t rows, int64_t size,
                      uint64_t* words, const Device& device) {
  constexpr int kElements = kVectorBytes / sizeof(Bits);
  constexpr int kLanesPerWord = 64 / kElements;
  const int64_t words_per_row = word_count(size);
  const bool aligned = column_stride == 1 && is_aligned(mask) &&
                       (rows == 1 || row_stride % kElements == 0);
  if (aligned) {
    const int64_t pieces = rows * words_per_row * kLanesPerWord;
    const unsigned grid = stream_grid(ceil_div(pieces, kStreamThreads), device);
    const Radix radix{words_per_row, kLanesPerWord};
    const Digits step =
        radix.split(static_cast<int64_t>(grid) * kStreamThreads);
    const auto kernel = &pack_bits_kernel<Bits, kNonzero>;
    PATHWAYS_LAUNCH(kernel, grid, kStreamThreads, 0, device.stream, mask,
                    row_stride, size, rows, radix, step, words);
  } else {
    const unsigned grid =
        stream_grid(ceil_div(rows * words_per_row, kStreamThreads), device);
    const auto kernel = &pack_bits_strided_kernel<Bits, kNonzero>;
    PATHWAYS_LAUNCH(kernel, grid, kStreamThreads, 0, device.stream, mask,
                    row_stride, column_stride, size, rows, words_per_row,
                    words);
  }
}

inline void launch_pack_bits(size_t element_size, bool floating,
                             const void* mask, int64_t row_stride,
                             int64_t column_stride, int64_t rows, int64_t size,
                             uint64_t* words, const Device& device) {
  if (rows == 0 || size == 0)
    return;
  const auto run = [&]<class Bits>() {
    constexpr Bits kAll = static_cast<Bits>(~Bits{0});
    constexpr Bits kNoSign = kAll >> 1;
    const Bits* from = static_cast<const Bits*>(mask);
    if (floating)
      launch_pack_bits<Bits, kNoSign>(from, row_stride, column_stride, rows,
                                      size, words, device);
    else
      launch_pack_bits<Bits, kAll>(from, row_stride, column_stride, rows, size,
                                   words, device);
  };
  switch (element_size) {
    case 1:
      return launch_pack_bits<uint8_t, 0xff>(static_cast<const uint8_t*>(mask),
                                             row_stride, column_stride, rows,
                                             size, words, device);
    case 2: return run.template operator()<uint16_t>();
    case 4: return run.template operator()<uint32_t>();
    default: return run.template operator()<uint64_t>();
  }
}

inline void launch_unpack_bits(const uint64_t* words, int64_t row_stride,
                               int64_t rows, int64_t size, uint8_t* mask,
                               const Device& device) {
  const int64_t total = rows * size;
  if (total == 0)
    return;
  const int64_t vectors = ceil_div(total, kVectorBytes);
  const unsigned grid = stream_grid(ceil_div(vectors, kStreamThreads), device);
  // Two digits are enough: the row is the middle one.
  const Radix radix{rows, size};
  const Digits step =
      radix.split(static_cast<int64_t>(grid) * kStreamThreads * kVectorBytes);
  const auto kernel = &unpack_bits_kernel;
  PATHWAYS_LAUNCH(kernel, grid, kStreamThreads, 0, device.stream, words,
                  row_stride, word_count(size), rows, radix, step, mask);
}

}  // namespace pathways::cuda
