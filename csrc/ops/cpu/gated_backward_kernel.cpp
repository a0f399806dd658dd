#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <memory>
#include <tuple>

#include "fresh_memory.h"
#include "gated_arguments.h"

namespace pathways {
namespace {

// Sums [N, parts, C], added up over the parts to [N, C], or over the inputs too
// to [C], as `type`. Every sum runs in an order that the shape alone decides.
Tensor reduce_sums(const Tensor& like, const std::vector<double>& sums,
                   const GatedShape& shape, int64_t parts, bool per_input,
                   const std::vector<int64_t>& sizes, ScalarType type) {
  const int64_t results = per_input ? shape.batch : 1;
  const int64_t terms = per_input ? parts : shape.batch * parts;
  const size_t channels = static_cast<size_t>(shape.channels);
  std::vector<double> totals(static_cast<size_t>(results) * channels, 0.0);
  const double* from = sums.data();
  for (int64_t n = 0; n < results; ++n) {
    double* total = totals.data() + static_cast<size_t>(n) * channels;
    for (int64_t term = 0; term < terms; ++term) {
      for (size_t c = 0; c < channels; ++c) {
        total[c] += *from++;
      }
    }
  }
  Tensor result = torch::stable::new_empty(like, sizes, type);
  dispatch_floating(type, [&](auto tag) {
    using T = typename decltype(tag)::type;
    T* to = static_cast<T*>(result.mutable_data_ptr());
    for (size_t i = 0; i < totals.size(); ++i) {
      to[i] = static_cast<T>(static_cast<ComputeType<T>>(totals[i]));
    }
  });
  return result;
}

std::vector<int64_t> sizes_of(const Tensor& tensor) {
  return {tensor.sizes().begin(), tensor.sizes().end()};
}

void run_innermost(const GatedBackwardCall& call) {
  // Whole cache lines, so that the threads share none.
  const size_t numbers = static_cast<size_t>(call.period) * 2;
  const size_t bytes =
      (numbers * (call.type == ElementType::kDouble ? 8 : 4) + 63) / 64 * 64;
  const int64_t chunk_elements = call.rows_per_chunk() * call.period;
  torch::stable::parallel_for(
      0, call.shape.batch * call.chunks_per_input(),
      std::max<int64_t>(1, gated_grain(call.activation) / chunk_elements),
      [&](int64_t begin, int64_t end) {
        const std::unique_ptr<void, decltype(&std::free)> scratch(
            std::aligned_alloc(64, bytes), &std::free);
        if (scratch == nullptr) {
          throw std::bad_alloc();
        }
        for (int64_t chunk = begin; chunk < end; ++chunk) {
          gated_backward_loops().innermost(call, chunk, scratch.get());
        }
      });
}

void run_contiguous(const GatedBackwardCall& call) {
  torch::stable::parallel_for(
      0, call.shape.batch * call.shape.channels,
      std::max<int64_t>(1, gated_grain(call.activation) / call.shape.space),
      [&](int64_t begin, int64_t end) {
        gated_backward_loops().contiguous(call, begin, end);
      });
}

std::tuple<Tensor, Tensor, Tensor> gated_backward_kernel(
    const Tensor& grad, const Tensor& x, const Tensor& gate,
    const std::optional<Tensor>& bias, const Text& activation,
    const std::optional<Tensor>& baseline, bool need_x, bool need_gate,
    bool need_bias) {
  const char* op = "_gated_backward";
  const GatedPlan plan = plan_gated(op, x, gate, bias, activation, baseline);
  check_gated_backward(op, grad, x, gate, bias, need_gate, need_bias);
  const Tensor input = dense_input(x, plan);
  // Only what is returned is allocated: each time is a call through the
  // dispatcher.
  const auto nothing = [](const Tensor& like) {
    const std::vector<int64_t> sizes{0};
    return torch::stable::new_empty(like, sizes, like.scalar_type());
  };
  const Tensor grad_x = need_x ? empty_in_layout_of(input) : nothing(x);
  prefer_huge_pages(grad_x);

  const Tensor incoming = in_layout_of(grad, input, input.scalar_type());
  const GatedArguments arguments(plan, input, gate, bias, baseline);
  GatedBackwardCall call{};
  arguments.fill(&call);
  const GatedShape& shape = call.shape;
  call.grad = incoming.const_data_ptr();
  call.grad_x = need_x ? grad_x.mutable_data_ptr() : nullptr;
  call.large = size_in_bytes(grad_x) >= kLargeBytes;
  // A gradient for each element: of unit gates, and of channel gates where the
  // space has one position.
  std::optional<Tensor> unit_grad;
  if (need_gate && shape.unit) {
    unit_grad = plan.shape.unit
                    ? empty_in_layout_of(input, arguments.gate_type())
                    : torch::stable::new_empty(gate, sizes_of(gate),
                                               arguments.gate_type());
    call.grad_gate = unit_grad->mutable_data_ptr();
  }
  const int64_t parts = shape.channel_innermost && shape.count() != 0
                            ? call.chunks_per_input()
                            : 1;
  const auto room_for_sums = [&](bool needed) {
    return std::vector<double>(
        static_cast<size_t>(needed ? shape.batch * parts * shape.channels : 0),
        0.0);
  };
  const bool sum_gate = need_gate && !shape.unit;
  std::vector<double> gate_sums = room_for_sums(sum_gate);
  std::vector<double> bias_sums = room_for_sums(need_bias);
  call.gate_sums = sum_gate ? gate_sums.data() : nullptr;
  call.bias_sums = need_bias ? bias_sums.data() : nullptr;
  if (input.numel() != 0 && (need_x || need_gate || need_bias)) {
    if (shape.channel_innermost) {
      run_innermost(call);
    } else {
      run_contiguous(call);
    }
  }
  const auto gate_result = [&] {
    if (sum_gate) {
      return reduce_sums(x, gate_sums, shape, parts, shape.per_input,
                         sizes_of(gate), gate.scalar_type());
    }
    if (!need_gate) {
      return nothing(gate);
    }
    return plan.shape.unit ? in_layout_of(*unit_grad, input, gate.scalar_type())
                           : contiguous_as(*unit_grad, gate.scalar_type());
  };
  const auto bias_result = [&] {
    return need_bias ? reduce_sums(x, bias_sums, shape, parts, false,
                                   {shape.channels}, bias->scalar_type())
                     : nothing(bias.has_value() ? *bias : x);
  };
  return {grad_x, gate_result(), bias_result()};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pathways, CPU, m)
{
  m.impl("_gated_backward", TORCH_BOX(&gated_backward_kernel));
}

}  // namespace pathways
