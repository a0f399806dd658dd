// Body of class_frequency: int64 [K, D], how often each neuron is in the
// pathways of a class (positional popcount). Counting is done in integers, so
// the atomic additions give the same result in any order.
#pragma once

#include "../../core/bits.h"
#include "class_tiles.h"
#include "common.cuh"

namespace pathways::cuda {

// A block counts 32 neighbouring words of one run: lane = word, warp = every
// eighth row, so a warp reads 256 contiguous bytes of a row.
constexpr int kFrequencyWarps = 8;
constexpr int kFrequencyThreads = kFrequencyWarps * kWarpSize;
constexpr int kFrequencyPlanes = 6;
// A thread's vertical counter (63 at most) must hold the rows of a run.
static_assert(kFrequencyRows <=
              kFrequencyWarps * ((1 << kFrequencyPlanes) - 1));

__global__ void __launch_bounds__(kFrequencyThreads)
    class_frequency_kernel(const uint64_t* __restrict__ words, int64_t stride,
                           int64_t size, const int64_t* __restrict__ order,
                           const RowRun* __restrict__ runs, int64_t run_count,
                           unsigned long long* __restrict__ out) {
  // counts[bit][word]; one column more than needed keeps both the additions
  // (one bit, many words) and the read-out (one word, many bits) free of bank
  // conflicts.
  PATHWAYS_SHARED(counts, unsigned[kWordBits][kWarpSize + 1]);
  const int lane = threadIdx.x % kWarpSize;
  const int warp = threadIdx.x / kWarpSize;
  const int64_t words_per_row = (size + kWordBits - 1) / kWordBits;
  const int64_t columns = (words_per_row + kWarpSize - 1) / kWarpSize;
  for (int64_t item = blockIdx.x; item < run_count * columns;
       item += gridDim.x) {
    const RowRun run = runs[item / columns];
    const int64_t first_word = item % columns * kWarpSize;
    const int64_t word = first_word + lane;
    for (int k = threadIdx.x; k < kWordBits * (kWarpSize + 1);
         k += kFrequencyThreads)
      (&counts[0][0])[k] = 0;
    __syncthreads();
    if (word < words_per_row) {
      // Bit-sliced counters: bit d of plane p is bit p of neuron d's count.
      uint64_t plane[kFrequencyPlanes] = {};
#pragma unroll 4
      for (int row = warp; row < run.count; row += kFrequencyWarps) {
        uint64_t carry = words[order[run.first + row] * stride + word];
#pragma unroll
        for (int p = 0; p < kFrequencyPlanes; ++p) {
          const uint64_t next = plane[p] & carry;
          plane[p] ^= carry;
          carry = next;
        }
      }
#pragma unroll 4
      for (int bit = 0; bit < kWordBits; ++bit) {
        unsigned count = 0;
#pragma unroll
        for (int p = 0; p < kFrequencyPlanes; ++p)
          count |= static_cast<unsigned>(plane[p] >> bit & 1) << p;
        if (count != 0)
          atomicAdd(&counts[bit][lane], count);
      }
    }
    __syncthreads();
    for (int k = threadIdx.x; k < kWordBits * kWarpSize;
         k += kFrequencyThreads) {
      const int64_t neuron = first_word * kWordBits + k;
      const unsigned count = counts[k % kWordBits][k / kWordBits];
      if (neuron < size && count != 0)
        atomicAdd(&out[run.label * size + neuron],
                  static_cast<unsigned long long>(count));
    }
    __syncthreads();
  }
}

inline void launch_class_frequency(const PackedRows& rows, int64_t size,
                                   const int64_t* order, const RowRun* runs,
                                   int64_t run_count, int64_t* out,
                                   const Device& device) {
  const int64_t columns = ceil_div(word_count(size), kWarpSize);
  if (run_count == 0 || columns == 0)
    return;
  const unsigned grid = stream_grid(run_count * columns, device);
  const auto kernel = &class_frequency_kernel;
  PATHWAYS_LAUNCH(kernel, grid, kFrequencyThreads, 0, device.stream, rows.words,
                  rows.stride, size, order, runs, run_count,
                  reinterpret_cast<unsigned long long*>(out));
}

}  // namespace pathways::cuda
