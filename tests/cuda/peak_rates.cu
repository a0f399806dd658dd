// Measures how many pairs of bits (and, then count) this GPU gets through in a
// second when nothing but the instruction is in the way: popcounts on the
// integer units, and binary products on tensor cores. tools/gpu_check.py
// compiles and runs it; the rates of the ops are given as shares of these.
// Prints one JSON object.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

#include "../../csrc/ops/cuda/ptx.cuh"

namespace {

constexpr int kThreads = 256;
constexpr int kChains = 8;  // independent sums of a thread, to hide latencies

void require(cudaError_t error) {
  if (error != cudaSuccess) {
    std::fprintf(stderr, "peak_rates: CUDA reported: %s\n",
                 cudaGetErrorString(error));
    std::exit(1);
  }
}

// The operands change with every turn, or the compiler would count once. A
// rotation costs one more integer instruction for two popcounts.
__global__ void popc_kernel(int turns, uint32_t seed, int32_t* out) {
  uint32_t a[kChains];
  int32_t sum[kChains] = {};
  for (int k = 0; k < kChains; ++k)
    a[k] = seed * (threadIdx.x + 1) + k;
  for (int turn = 0; turn < turns; ++turn) {
#pragma unroll
    for (int k = 0; k < kChains; ++k) {
      a[k] += seed;
      sum[k] += __popc(a[k] & 0x5a5a5a5au);
    }
  }
  int32_t total = 0;
  for (int k = 0; k < kChains; ++k)
    total += sum[k];
  out[blockIdx.x * blockDim.x + threadIdx.x] = total;
}

__global__ void mma_kernel(int turns, uint32_t seed, int32_t* out) {
  const uint32_t word = seed * (threadIdx.x + 1);
  int32_t sum[kChains][4] = {};
  for (int turn = 0; turn < turns; ++turn) {
#pragma unroll
    for (int k = 0; k < kChains; ++k)
      pathways::cuda::mma_and_popc(sum[k], {word, word + 1, word + 2, word + 3},
                                   {word + k, word});
  }
  int32_t total = 0;
  for (int k = 0; k < kChains; ++k)
    total += sum[k][0] + sum[k][1] + sum[k][2] + sum[k][3];
  out[blockIdx.x * blockDim.x + threadIdx.x] = total;
}

template <class Kernel>
double best_seconds(Kernel kernel, int blocks, int turns, int32_t* out) {
  cudaEvent_t begin, end;
  require(cudaEventCreate(&begin));
  require(cudaEventCreate(&end));
  float best = 1e30f;
  for (int repeat = 0; repeat < 6; ++repeat) {
    require(cudaEventRecord(begin));
    kernel<<<blocks, kThreads>>>(turns, 0x9e3779b1u, out);
    require(cudaGetLastError());
    require(cudaEventRecord(end));
    require(cudaEventSynchronize(end));
    float milliseconds = 0;
    require(cudaEventElapsedTime(&milliseconds, begin, end));
    if (repeat > 0)
      best = std::min(best, milliseconds);
  }
  return best * 1e-3;
}

}  // namespace

int main() {
  cudaDeviceProp device{};
  require(cudaGetDeviceProperties(&device, 0));
  const int blocks = device.multiProcessorCount * 8;
  int32_t* out = nullptr;
  require(cudaMalloc(&out, sizeof(int32_t) * blocks * kThreads));
  constexpr int kTurns = 1 << 14;
  const double chains = static_cast<double>(blocks) * kTurns * kChains;
  const double popc =
      chains * kThreads * 32 / best_seconds(popc_kernel, blocks, kTurns, out);
  double mma = 0;
  if (device.major >= 8)
    mma = chains * (kThreads / 32) * (16.0 * 8 * 256) /
          best_seconds(mma_kernel, blocks, kTurns, out);
  std::printf("{\"popc\": %.4e, \"mma\": %.4e}\n", popc, mma);
  return 0;
}
