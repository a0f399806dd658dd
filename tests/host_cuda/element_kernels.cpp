// Gating, binarisation and pooling, see host_cuda.h.

#include "support.h"
// After the shim.
#include "../../csrc/ops/cuda/adaptive_avg_max_pool2d_kernel.cuh"
#include "../../csrc/ops/cuda/binarize_kernel.cuh"
#include "../../csrc/ops/cuda/gated_backward_kernel.cuh"
#include "../../csrc/ops/cuda/gated_forward_kernel.cuh"

using namespace host_cuda;
using pathways::Activation;
using pathways::ElementType;

extern "C" {

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
    const pathways::GatedShape shape{sizes[0], sizes[1], sizes[2],
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

const char* host_cuda_adaptive_pool(int64_t type, const void* x, void* y,
                                    const int64_t* sizes, bool innermost,
                                    int64_t multiprocessors) {
  return guarded([&] {
    const pathways::PoolShape shape{sizes[0], sizes[1], sizes[2], sizes[3],
                                    sizes[4], sizes[5], innermost};
    cuda::launch_adaptive_pool({static_cast<ElementType>(type), x, y, shape},
                               device_of(multiprocessors));
  });
}

}  // extern "C"
