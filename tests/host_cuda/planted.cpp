// Planted mistakes, each of which the shim or a sanitizer must notice.

#include <map>

#include "support.h"

using namespace host_cuda;

namespace {

__global__ void divergent_barrier_kernel(float* out) {
  if (threadIdx.x < 40) {
    __syncthreads();
  }
  out[threadIdx.x] = 1;
  __shfl_xor_sync(0xffffffffu, 1.0f, 1);
}

__global__ void excluded_lane_kernel(float* out) {
  out[threadIdx.x] = __shfl_xor_sync(0x0000ffffu, 1.0f, 1);
}

__global__ void foreign_lane_kernel(float* out) {
  if (threadIdx.x < 16) {
    out[threadIdx.x] = __shfl_xor_sync(0x0000ffffu, 1.0f, 16);
  }
}

// Four lanes of the warp stay away from the product.
__global__ void partial_warp_kernel(float* out) {
  int32_t sum[4] = {};
  if (threadIdx.x % 32 < 28) {
    cuda::mma_and_popc(sum, {1, 1, 1, 1}, {1, 1});
  }
  out[threadIdx.x] = static_cast<float>(sum[0]);
}

__global__ void unfinished_copy_kernel(float* out) {
  PATHWAYS_SHARED(shared, float[128]);
  cuda::copy_async<8>(&shared[2 * threadIdx.x], out, 8);
  cuda::commit_copies();
  cuda::wait_for_copies<1>();
}

__global__ void unaligned_copy_kernel(float* out) {
  PATHWAYS_SHARED(shared, float[132]);
  cuda::copy_async<8>(&shared[1], out, 8);
  cuda::commit_copies();
  cuda::wait_for_copies<0>();
}

__global__ void too_much_shared_kernel(float* out) {
  PATHWAYS_SHARED(shared, char[40 << 10]);
  PATHWAYS_SHARED(more, char[9 << 10]);
  out[threadIdx.x] = static_cast<float>(shared[0] + more[0]);
}

__global__ void unwritten_shared_kernel(float* out) {
  PATHWAYS_SHARED(shared, float[64]);
  out[threadIdx.x] = shared[threadIdx.x];
}

// Without the barrier the result depends on the order of the threads.
__global__ void missing_barrier_kernel(float* out) {
  PATHWAYS_SHARED(shared, float[64]);
  shared[threadIdx.x] = static_cast<float>(threadIdx.x);
  out[threadIdx.x] = shared[63 - threadIdx.x];
}

// What AddressSanitizer must notice: a write one element behind shared and
// global memory.
__global__ void shared_overflow_kernel(float* out) {
  PATHWAYS_SHARED(shared, float[64]);
  float* values = shared;  // the size is out of the compiler's sight
  values[threadIdx.x + 1] = 1;
  __syncthreads();
  out[threadIdx.x] = shared[threadIdx.x];
}

__global__ void global_overflow_kernel(float* out) {
  out[threadIdx.x + 1] = 1;
}

// What UndefinedBehaviorSanitizer must notice: a shift by the width of the type
// and more, and a vector load between two vectors, which only a GPU refuses.
__global__ void wide_shift_kernel(float* out) {
  out[threadIdx.x] = static_cast<float>(1u << threadIdx.x);
}

__global__ void unaligned_load_kernel(float* out) {
  const auto values = cuda::load_vector<float, 4>(out + threadIdx.x % 4);
  out[threadIdx.x] = values.value[0];
}

}  // namespace

extern "C" {

void host_cuda_set_order(unsigned seed) {
  shim::set_order(seed);
}

const char* host_cuda_planted(const char* name, float* out) {
  return guarded([&] {
    using Planted = void (*)(float*);
    static const std::map<std::string, Planted> kPlanted{
        {"divergent_barrier", &divergent_barrier_kernel},
        {"excluded_lane", &excluded_lane_kernel},
        {"global_overflow", &global_overflow_kernel},
        {"foreign_lane", &foreign_lane_kernel},
        {"missing_barrier", &missing_barrier_kernel},
        {"partial_warp", &partial_warp_kernel},
        {"shared_overflow", &shared_overflow_kernel},
        {"too_much_shared", &too_much_shared_kernel},
        {"unaligned_load", &unaligned_load_kernel},
        {"wide_shift", &wide_shift_kernel},
        {"unaligned_copy", &unaligned_copy_kernel},
        {"unfinished_copy", &unfinished_copy_kernel},
        {"unwritten_shared", &unwritten_shared_kernel},
    };
    const auto found = kPlanted.find(name);
    if (found == kPlanted.end()) {
      throw std::runtime_error(std::string("no planted mistake ") + name);
    }
    const Planted kernel = found->second;
    PATHWAYS_LAUNCH(kernel, 1, 64, 0, nullptr, out);
  });
}

}  // extern "C"
