#include "adaptive_avg_max_pool2d_kernel.cuh"

namespace pathways::cuda {

void adaptive_avg_max_pool2d(const AdaptivePoolCall& call,
                             const Device& device) {
  launch_adaptive_pool(call, device);
}

}  // namespace pathways::cuda
