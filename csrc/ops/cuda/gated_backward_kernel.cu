#include "gated_backward_kernel.cuh"

namespace pathways::cuda {

GatedBackwardPlan plan_gated_backward(const GatedShape& shape, ElementType type,
                                      const void* grad, const void* x,
                                      const void* grad_x) {
  return make_gated_backward_plan(shape, type, grad, x, grad_x);
}

void gated_backward(const GatedBackwardCall& call,
                    const GatedBackwardPlan& plan, const Device& device) {
  launch_gated_backward(call, plan, device);
}

}  // namespace pathways::cuda
