// Packed rows, see host_cuda.h.

#include "support.h"
// After the shim.
#include "../../csrc/ops/cuda/class_frequency_kernel.cuh"
#include "../../csrc/ops/cuda/class_overlap_kernel.cuh"
#include "../../csrc/ops/cuda/pack_bits_kernel.cuh"
#include "../../csrc/ops/cuda/pairwise_kernel.cuh"

using namespace host_cuda;

namespace {

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

}  // namespace

extern "C" {

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

const char* host_cuda_mma(const uint32_t* a, const uint32_t* b, int32_t* sum) {
  return guarded([&] {
    const auto kernel = &mma_kernel;
    PATHWAYS_LAUNCH(kernel, 1, 32, 0, nullptr, a, b, sum);
  });
}

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

}  // extern "C"
