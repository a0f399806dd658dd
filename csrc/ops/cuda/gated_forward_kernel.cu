#include "gated_forward_kernel.cuh"

namespace pathways::cuda {

void gated_forward(const GatedForwardCall& call, const Device& device) {
  launch_gated_forward(call, device);
}

}  // namespace pathways::cuda
