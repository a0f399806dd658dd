#include <torch/csrc/stable/library.h>

#include "../pool_result.h"
#include "launch_scope.h"

namespace pathways::cuda {
namespace {

Tensor adaptive_avg_max_pool2d_kernel(const Tensor& x, int64_t height,
                                      int64_t width) {
  constexpr const char* op = "adaptive_avg_max_pool2d";
  const PoolShape shape = plan_adaptive_pool(op, x, height, width);
  const LaunchScope scope(op, x);
  const Tensor input = pool_input(x, shape);
  const Tensor result = pool_result(op, input, shape);
  adaptive_avg_max_pool2d(
      {element_type(input.scalar_type()), input.const_data_ptr(),
       result.mutable_data_ptr(), shape},
      scope.device());
  scope.check();
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pathways, CUDA, m)
{
  m.impl("adaptive_avg_max_pool2d", TORCH_BOX(&adaptive_avg_max_pool2d_kernel));
}

}  // namespace pathways::cuda
