// The CUDA kernels of csrc/ops/cuda compiled for the CPU, behind a C interface
// that tests/cuda/test_host_cuda.py calls with the pointers of CPU tensors.
// Every function returns null, or what went wrong.

#include "shim.h"
// After the shim, which stands in for nvcc.
#include "../../csrc/ops/cuda/binarize_kernel.cuh"
#include "../../csrc/ops/cuda/class_frequency_kernel.cuh"
#include "../../csrc/ops/cuda/class_overlap_kernel.cuh"
#include "../../csrc/ops/cuda/gated_backward_kernel.cuh"
#include "../../csrc/ops/cuda/gated_forward_kernel.cuh"
#include "../../csrc/ops/cuda/pack_bits_kernel.cuh"
#include "../../csrc/ops/cuda/pairwise_kernel.cuh"

#include <map>

namespace {

namespace cuda = pathways::cuda;
using cuda::ElementType;
using pathways::Activation;

thread_local std::string last_error;

template <class Function>
const char* guarded(const Function& function) {
  try {
    function();
    return nullptr;
  } catch (const std::exception& error) {
    last_error = error.what();
    return last_error.c_str();
  }
}

// A device with this many multiprocessors: 1 makes grids small, so that the
// grid-stride loops take several trips.
cuda::Device device_of(int64_t multiprocessors) {
  return {static_cast<int>(multiprocessors), 80, 80, nullptr};
}

// Sums behind the data, so that an overflow is seen by a sanitizer and an
// unwritten one gives NaN.
template <class T>
std::vector<T> scratch(int64_t count) {
  return std::vector<T>(static_cast<size_t>(count), static_cast<T>(-0x7777));
}

struct ClassPositions {
  std::vector<int64_t> order;
  std::vector<int64_t> begin;
};

ClassPositions positions_of(const int64_t* labels, int64_t rows,
                            int64_t classes) {
  ClassPositions result;
  result.begin.push_back(0);
  for (int64_t c = 0; c < classes; ++c) {
    for (int64_t i = 0; i < rows; ++i) {
      if (labels[i] == c) {
        result.order.push_back(i);
      }
    }
    result.begin.push_back(static_cast<int64_t>(result.order.size()));
  }
  return result;
}

__global__ void mma_kernel(const uint32_t* a, const uint32_t* b, int32_t* sum) {
  const int lane = threadIdx.x;
  int32_t mine[4] = {sum[4 * lane], sum[4 * lane + 1], sum[4 * lane + 2],
                     sum[4 * lane + 3]};
  cuda::mma_and_popc(
      mine, {a[4 * lane], a[4 * lane + 1], a[4 * lane + 2], a[4 * lane + 3]},
      {b[2 * lane], b[2 * lane + 1]});
  for (int i = 0; i < 4; ++i) {
    sum[4 * lane + i] = mine[i];
  }
}

// Planted mistakes: the shim must notice each of them.
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

}  // namespace

extern "C" {

void host_cuda_set_order(unsigned seed) {
  shim::set_order(seed);
}

const char* host_cuda_gated_forward(int64_t type, const void* x, void* y,
                                    int64_t gate_type, const void* gate,
                                    const void* bias, const void* baseline,
                                    int64_t activation, const int64_t* sizes,
                                    const bool* flags,
                                    int64_t multiprocessors) {
  return guarded([&] {
    cuda::GatedForwardCall call{};
    call.type = static_cast<ElementType>(type);
    call.x = x;
    call.y = y;
    call.gate = {gate, static_cast<ElementType>(gate_type)};
    call.bias = bias;
    call.baseline = baseline;
    call.activation = static_cast<Activation>(activation);
    call.shape = {sizes[0], sizes[1], sizes[2], flags[0], flags[1], flags[2]};
    cuda::launch_gated_forward(call, device_of(multiprocessors));
  });
}

const char* host_cuda_gated_backward(int64_t type, const void* grad,
                                     const void* x, int64_t gate_type,
                                     const void* gate, const void* bias,
                                     const void* baseline, int64_t activation,
                                     void* grad_x, void* grad_gate,
                                     int64_t bias_type, void* grad_bias,
                                     const int64_t* sizes, const bool* flags,
                                     int64_t multiprocessors) {
  return guarded([&] {
    cuda::GatedBackwardCall call{};
    call.type = static_cast<ElementType>(type);
    call.grad = grad;
    call.x = x;
    call.gate = {gate, static_cast<ElementType>(gate_type)};
    call.bias = bias;
    call.baseline = baseline;
    call.activation = static_cast<Activation>(activation);
    call.grad_x = grad_x;
    call.grad_gate = {grad_gate, static_cast<ElementType>(gate_type)};
    call.grad_bias = {grad_bias, static_cast<ElementType>(bias_type)};
    const cuda::GatedShape shape{sizes[0], sizes[1], sizes[2],
                                 flags[0], flags[1], flags[2]};
    const cuda::GatedBackwardPlan plan =
        cuda::make_gated_backward_plan(shape, call.type, grad, x, grad_x);
    // Room for double; float sums use half of it.
    std::vector<double> gate_sums = scratch<double>(plan.sum_count());
    std::vector<double> bias_sums = scratch<double>(plan.sum_count());
    call.gate_sums = gate_sums.data();
    call.bias_sums = bias_sums.data();
    cuda::launch_gated_backward(call, plan, device_of(multiprocessors));
  });
}

const char* host_cuda_binarize(int64_t type, const void* importance,
                               int64_t count, void* mask,
                               int64_t multiprocessors) {
  return guarded([&] {
    cuda::launch_binarize(static_cast<ElementType>(type), importance, count,
                          mask, device_of(multiprocessors));
  });
}

const char* host_cuda_binarize_backward(int64_t type, const void* grad,
                                        const void* importance, int64_t count,
                                        double sigma, double gamma,
                                        void* result, int64_t multiprocessors) {
  return guarded([&] {
    cuda::launch_binarize_backward(static_cast<ElementType>(type), grad,
                                   importance, count,
                                   pathways::quantizer_constants(sigma, gamma),
                                   result, device_of(multiprocessors));
  });
}

const char* host_cuda_pack_bits(int64_t element_size, bool floating,
                                const void* mask, int64_t row_stride,
                                int64_t column_stride, int64_t rows,
                                int64_t size, uint64_t* words,
                                int64_t multiprocessors) {
  return guarded([&] {
    cuda::launch_pack_bits(static_cast<size_t>(element_size), floating, mask,
                           row_stride, column_stride, rows, size, words,
                           device_of(multiprocessors));
  });
}

const char* host_cuda_unpack_bits(const uint64_t* words, int64_t row_stride,
                                  int64_t rows, int64_t size, uint8_t* mask,
                                  int64_t multiprocessors) {
  return guarded([&] {
    cuda::launch_unpack_bits(words, row_stride, rows, size, mask,
                             device_of(multiprocessors));
  });
}

const char* host_cuda_pairwise_intersection(const uint64_t* a, int64_t stride_a,
                                            int64_t rows_a, const uint64_t* b,
                                            int64_t stride_b, int64_t rows_b,
                                            int64_t words, int64_t product,
                                            int32_t* out,
                                            int64_t multiprocessors) {
  return guarded([&] {
    cuda::launch_pairwise_intersection({a, stride_a, rows_a},
                                       {b, stride_b, rows_b}, words,
                                       static_cast<cuda::BitProduct>(product),
                                       out, device_of(multiprocessors));
  });
}

const char* host_cuda_pairwise_iou(const uint64_t* a, int64_t stride_a,
                                   int64_t rows_a, const uint64_t* b,
                                   int64_t stride_b, int64_t rows_b,
                                   int64_t words, int64_t product, float* out,
                                   int64_t multiprocessors) {
  return guarded([&] {
    const cuda::Device device = device_of(multiprocessors);
    const cuda::PackedRows left{a, stride_a, rows_a};
    const cuda::PackedRows right{b, stride_b, rows_b};
    std::vector<int32_t> count_a = scratch<int32_t>(rows_a);
    std::vector<int32_t> count_b = scratch<int32_t>(rows_b);
    cuda::launch_row_count(left, words, count_a.data(), device);
    cuda::launch_row_count(right, words, count_b.data(), device);
    cuda::launch_pairwise_iou(left, right, words,
                              static_cast<cuda::BitProduct>(product),
                              count_a.data(), count_b.data(), out, device);
  });
}

const char* host_cuda_class_overlap(const uint64_t* words, int64_t stride,
                                    int64_t rows, int64_t words_per_row,
                                    const int64_t* labels, int64_t classes,
                                    int64_t product, double* out,
                                    int64_t multiprocessors) {
  return guarded([&] {
    const cuda::Device device = device_of(multiprocessors);
    const cuda::PackedRows packed{words, stride, rows};
    const ClassPositions positions = positions_of(labels, rows, classes);
    std::vector<int64_t> run_begin;
    std::vector<int64_t> group_begin;
    const std::vector<cuda::RowRun> runs =
        cuda::class_runs(positions.begin, cuda::kOverlapRows, &run_begin);
    const std::vector<cuda::RunRange> groups =
        cuda::group_runs(run_begin, cuda::kRunsPerGroup, &group_begin);
    cuda::OverlapTables tables{};
    tables.order = positions.order.data();
    tables.runs = runs.data();
    tables.run_count = static_cast<int64_t>(runs.size());
    tables.groups = groups.data();
    tables.group_count = static_cast<int64_t>(groups.size());
    tables.run_begin = run_begin.data();
    tables.group_begin = group_begin.data();
    std::vector<int32_t> counts = scratch<int32_t>(rows);
    std::vector<double> partial =
        scratch<double>(tables.run_count * tables.group_count);
    cuda::launch_row_count(packed, words_per_row, counts.data(), device);
    cuda::launch_class_overlap(
        packed, words_per_row, static_cast<cuda::BitProduct>(product),
        counts.data(), tables, classes, partial.data(), out, device);
  });
}

const char* host_cuda_class_frequency(const uint64_t* words, int64_t stride,
                                      int64_t rows, int64_t size,
                                      const int64_t* labels, int64_t classes,
                                      int64_t* out, int64_t multiprocessors) {
  return guarded([&] {
    const ClassPositions positions = positions_of(labels, rows, classes);
    const std::vector<cuda::RowRun> runs =
        cuda::class_runs(positions.begin, cuda::kFrequencyRows);
    cuda::launch_class_frequency(
        {words, stride, rows}, size, positions.order.data(), runs.data(),
        static_cast<int64_t>(runs.size()), out, device_of(multiprocessors));
  });
}

// One product of fragments: four words of A, two of B and four sums for each of
// 32 lanes.
const char* host_cuda_mma(const uint32_t* a, const uint32_t* b, int32_t* sum) {
  return guarded([&] {
    const auto kernel = &mma_kernel;
    PATHWAYS_LAUNCH(kernel, 1, 32, 0, nullptr, a, b, sum);
  });
}

// The rule that chooses a kernel for bit products. Null wish: not set. Returns
// the BitProduct, or -1 for a wish that is none.
int64_t host_cuda_choose_bit_product(const char* wish, int64_t capability,
                                     int64_t code, int64_t multiprocessors,
                                     int64_t rows_a, int64_t rows_b) {
  cuda::BitProductWish parsed{};
  if (!cuda::parse_bit_product_wish(wish, &parsed)) {
    return -1;
  }
  return static_cast<int64_t>(cuda::choose_bit_product(
      parsed, static_cast<int>(capability), static_cast<int>(code),
      static_cast<int>(multiprocessors), rows_a, rows_b));
}

// `out` holds 64 floats.
const char* host_cuda_planted(const char* name, float* out) {
  return guarded([&] {
    using Planted = void (*)(float*);
    static const std::map<std::string, Planted> kPlanted{
        {"divergent_barrier", &divergent_barrier_kernel},
        {"excluded_lane", &excluded_lane_kernel},
        {"foreign_lane", &foreign_lane_kernel},
        {"missing_barrier", &missing_barrier_kernel},
        {"partial_warp", &partial_warp_kernel},
        {"too_much_shared", &too_much_shared_kernel},
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
