#pragma once

// The result of adaptive_avg_max_pool2d, for both back ends.

#include <exception>

#include "stable.h"

namespace pathways {

// x in one of the two memory orders.
inline Tensor pool_input(const Tensor& x, const PoolShape& shape) {
  return shape.channel_innermost || x.is_contiguous()
             ? x
             : torch::stable::contiguous(x);
}

// [N, 2 C, rows, columns], not written to yet.
inline Tensor pool_result(const char* op, const Tensor& x,
                          const PoolShape& shape) {
  const int64_t sizes[] = {shape.batch, 2 * shape.channels, shape.rows,
                           shape.columns};
  try {
    int64_t strides[4];
    int64_t stride = 1;
    for (int dim = 3; dim >= 0; --dim) {
      strides[dim] = stride;
      if (sizes[dim] > 1 &&
          __builtin_mul_overflow(stride, sizes[dim], &stride)) {
        throw std::overflow_error("more elements than can be counted");
      }
    }
    return empty_strided(x, 4, sizes, strides, x.scalar_type());
  } catch (const std::exception&) {
    detail::fail(op, ": the result must fit into memory, got shape [", sizes[0],
                 ", ", sizes[1], ", ", sizes[2], ", ", sizes[3], "] of ",
                 dtype_name(x.scalar_type()));
  }
}

}  // namespace pathways
