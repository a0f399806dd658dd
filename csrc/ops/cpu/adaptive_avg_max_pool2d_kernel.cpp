#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstring>
#include <memory>

#include "../check.h"
#include "../pool_result.h"
#include "adaptive_avg_max_pool2d_loops.h"
#include "fresh_memory.h"

namespace pathways {
namespace {

// Numbers that are read per task: above the cost of waking a thread.
constexpr int64_t kGrain = 1 << 15;

// Uninitialised memory on a boundary of lanes; a small one is on the stack.
template <typename T, int64_t kSmall>
class Scratch {
 public:
  explicit Scratch(int64_t count) {
    if (count > kSmall) {
      large_.reset(new Line[static_cast<size_t>(
          (count * static_cast<int64_t>(sizeof(T)) + 63) / 64)]);
    }
  }

  T* data() {
    return reinterpret_cast<T*>(large_ == nullptr ? small_ : large_.get());
  }

 private:
  struct alignas(64) Line {
    char bytes[64];
  };
  Line small_[(kSmall * sizeof(T) + 63) / 64];
  std::unique_ptr<Line[]> large_;
};

void fill_borders(const PoolShape& shape, int64_t* borders) {
  for (int64_t i = 0; i < shape.rows; ++i) {
    *borders++ = cell_begin(i, shape.height, shape.rows);
    *borders++ = cell_end(i, shape.height, shape.rows);
  }
  for (int64_t i = 0; i < shape.columns; ++i) {
    *borders++ = cell_begin(i, shape.width, shape.columns);
    *borders++ = cell_end(i, shape.width, shape.columns);
  }
}

template <typename C>
void fill_areas(const PoolShape& shape, const int64_t* borders, void* to) {
  C* areas = static_cast<C*>(to);
  const int64_t* columns = borders + 2 * shape.rows;
  for (int64_t i = 0; i < shape.rows; ++i) {
    const int64_t height = borders[2 * i + 1] - borders[2 * i];
    for (int64_t j = 0; j < shape.columns; ++j) {
      *areas++ = static_cast<C>(height * (columns[2 * j + 1] - columns[2 * j]));
    }
  }
}

// Every cell is one number: x is both halves of the result.
void copy_twice(const Tensor& x, const Tensor& result, int64_t batch) {
  const int64_t bytes = size_in_bytes(x) / batch;
  const char* from = static_cast<const char*>(x.const_data_ptr());
  char* to = static_cast<char*>(result.mutable_data_ptr());
  torch::stable::parallel_for(
      0, batch, std::max<int64_t>(1, 4 * kGrain / bytes),
      [&](int64_t begin, int64_t end) {
        for (int64_t n = begin; n < end; ++n) {
          for (const int64_t half : {0, 1}) {
            std::memcpy(to + (2 * n + half) * bytes, from + n * bytes,
                        static_cast<size_t>(bytes));
          }
        }
      });
}

Tensor adaptive_avg_max_pool2d_kernel(const Tensor& x, int64_t height,
                                      int64_t width) {
  constexpr const char* op = "adaptive_avg_max_pool2d";
  const PoolShape given = plan_adaptive_pool(op, x, height, width);
  const Tensor input = pool_input(x, given);
  Tensor result = pool_result(op, input, given);
  if (result.numel() == 0) {
    return result;
  }
  prefer_huge_pages(result);
  if (given.is_identity() && !given.channel_innermost) {
    copy_twice(input, result, given.batch);
    return result;
  }
  const PoolShape shape = given.folded();
  Scratch<int64_t, 64> borders(2 * shape.rows + 2 * shape.columns);
  fill_borders(shape, borders.data());
  Scratch<double, 64> areas(shape.cells());
  const ElementType type = element_type(input.scalar_type());
  const bool is_double = type == ElementType::kDouble;
  if (is_double) {
    fill_areas<double>(shape, borders.data(), areas.data());
  } else {
    fill_areas<float>(shape, borders.data(), areas.data());
  }
  const AdaptivePoolCall call{type,
                              shape,
                              input.const_data_ptr(),
                              result.mutable_data_ptr(),
                              borders.data(),
                              areas.data()};
  const AdaptiveAvgMaxPool2dLoops& loops = adaptive_avg_max_pool2d_loops();
  const auto grain = [](int64_t numbers) {
    return std::max<int64_t>(1, kGrain / numbers);
  };
  if (shape.channel_innermost) {
    const int64_t task =
        shape.space() * std::min(shape.channels, kPoolChannels);
    torch::stable::parallel_for(
        0, shape.batch * call.channel_groups(), grain(task),
        [&](int64_t begin, int64_t end) { loops.innermost(call, begin, end); });
  } else {
    torch::stable::parallel_for(
        0, shape.planes(), grain(shape.space()),
        [&](int64_t begin, int64_t end) {
          constexpr int64_t kUsual = 4 * (2048 + 32);
          Scratch<float, kUsual> scratch(call.scratch_numbers() *
                                         (is_double ? 2 : 1));
          loops.contiguous(call, begin, end, scratch.data());
        });
  }
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pathways, CPU, m)
{
  m.impl("adaptive_avg_max_pool2d", TORCH_BOX(&adaptive_avg_max_pool2d_kernel));
}

}  // namespace pathways
