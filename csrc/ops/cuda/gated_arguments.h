// Arguments of the gated CUDA ops in the form the kernels want: everything in
// the memory order of x, the channel vectors in the compute type.
#pragma once

#include "../stable.h"
#include "launch_scope.h"

namespace pathways::cuda {

inline Tensor dense_input(const Tensor& x, const GatedPlan& plan) {
  return plan.dense ? x : torch::stable::contiguous(x);
}

// The gate keeps its dtype: the kernels read any of them.
inline Tensor gate_for(const Tensor& gate, const Tensor& x,
                       const GatedPlan& plan) {
  return plan.shape.unit ? in_layout_of(gate, x, gate.scalar_type())
                         : torch::stable::contiguous(gate);
}

}  // namespace pathways::cuda
