// Bodies of _gated_backward. One pass over grad and x writes grad_x (and, for
// a gate of the shape of x, grad_gate) and leaves partial sums of the gate and
// bias gradients; a second kernel adds those in an order fixed by the shapes.
// Partial sums are float (double for double) over at most 2048 elements in
// chains of at most 64; they are added in double.
#pragma once

#include "gated_layout.cuh"

namespace pathways::cuda {

template <class T>
struct GatedBackwardArguments {
  using Acc = ComputeOf<T>;
  const T* grad;
  const T* x;
  T* grad_x;  // null when not wanted, as all results here
  ConstElements gate;
  const Acc* bias;
  const Acc* baseline;
  Elements grad_gate;  // gates per element only
  Acc* gate_sums;      // channel gates only
  Acc* bias_sums;
  int64_t batch, channels, space;
  int64_t gate_stride;  // C for a gate per input, 0 for a shared one
  int64_t chunks;       // pieces that the sums are split into
  Activation activation;
  bool aligned;
  bool gate_aligned;
  bool channels_aligned;  // vectors of bias and baseline
};

// The backward kernels hold more at once: up to 128 registers for a thread, and
// double, whose exp and erf alone need many, up to 255.
template <class T>
constexpr int kBackwardBlocks = sizeof(T) == 8 ? 1 : 2;

// What one element gives; its gate's gradient as the result.
template <Activation activation, class T, class Acc>
__device__ __forceinline__ Acc backward_element(T grad, T x, Acc gate, Acc bias,
                                                Acc baseline, Acc& grad_x) {
  const Acc incoming = to_compute<Acc>(grad);
  const Acc value = to_compute<Acc>(x);
  grad_x = gate_grad_x<activation>(incoming, value, gate, bias);
  return gate_grad_gate<activation>(incoming, value, bias, baseline);
}

// Channel-first: a group of lanes takes one chunk of one (n, c) row.
constexpr int kChunkElements = 2048;

// Lanes that share a row: few for short rows, so that lanes do not idle.
constexpr int kShortRowLanes = 8;
constexpr int64_t kShortRow = 64;

template <class T, bool unit, int lanes>
struct GatedBackwardRowBody {
  using Acc = ComputeOf<T>;
  static constexpr int kElements = kVectorBytes / sizeof(T);

  const GatedBackwardArguments<T>& args;

  __device__ __forceinline__ void run() const {
    constexpr int kGroups = kStreamThreads / lanes;
    const int lane = threadIdx.x % lanes;
    const int64_t segments = args.batch * args.channels * args.chunks;
    const int64_t stride = static_cast<int64_t>(gridDim.x) * kGroups;
    // The same trips for all lanes of a warp: all of them meet the shuffles.
    for (int64_t block_first = static_cast<int64_t>(blockIdx.x) * kGroups;
         block_first < segments; block_first += stride) {
      const int64_t segment = block_first + threadIdx.x / lanes;
      Acc gate_sum = 0;
      Acc bias_sum = 0;
      if (segment < segments)
        segment_sums(segment, lane, gate_sum, bias_sum);
      if (!unit && args.gate_sums) {
        gate_sum = group_sum<lanes>(gate_sum);
        if (lane == 0 && segment < segments)
          args.gate_sums[segment] = gate_sum;
      }
      if (args.bias_sums) {
        bias_sum = group_sum<lanes>(bias_sum);
        if (lane == 0 && segment < segments)
          args.bias_sums[segment] = bias_sum;
      }
    }
  }

  __device__ __forceinline__ void zero_grad_x(int lane, int64_t first,
                                              int64_t vector_first,
                                              int64_t vector_last,
                                              int64_t last) const {
    for (int64_t i = vector_first + lane * kElements; i < vector_last;
         i += lanes * kElements)
      store_vector(args.grad_x + i, Vector<T, kElements>{});
#pragma unroll 1
    for (int64_t i = first + lane; i < vector_first; i += lanes)
      args.grad_x[i] = from_compute<T>(Acc(0));
#pragma unroll 1
    for (int64_t i = vector_last + lane; i < last; i += lanes)
      args.grad_x[i] = from_compute<T>(Acc(0));
  }

  __device__ __forceinline__ void segment_sums(int64_t segment, int lane,
                                               Acc& gate_sum,
                                               Acc& bias_sum) const {
    const int64_t row = segment / args.chunks;
    const int64_t channel = row % args.channels;
    const int64_t first =
        row * args.space + segment % args.chunks * kChunkElements;
    const int64_t last =
        min_of<int64_t>(first + kChunkElements, (row + 1) * args.space);
    const Acc bias = bias_at(args.bias, channel);
    const Acc baseline = baseline_at(args.baseline, channel);
    Acc shared_gate = 0;
    if constexpr (!unit) {
      shared_gate = load_element<Acc>(
          args.gate, row / args.channels * args.gate_stride + channel);
    }
    // A row may begin between two vectors: elements before the first whole
    // vector and behind the last one are taken one by one.
    int64_t vector_first = last;
    int64_t vector_last = last;
    if (args.aligned) {
      vector_first = (first + kElements - 1) / kElements * kElements;
      vector_last = last / kElements * kElements;
      if (vector_first >= vector_last)
        vector_first = vector_last = last;
    }
    if (!unit && shared_gate == Acc(0) && !args.gate_sums) {
      // Nothing but zeros, and x is not needed to know it.
      if (args.grad_x)
        zero_grad_x(lane, first, vector_first, vector_last, last);
      return;
    }
    const auto single = [&](int64_t i) {
      const Acc gate = unit ? load_element<Acc>(args.gate, i) : shared_gate;
      const T grad = args.grad[i];
      const T x = args.x[i];
      Acc grad_x = 0;
      Acc grad_gate = 0;
      with_activation(args.activation, [&]<Activation activation>() {
        grad_gate =
            backward_element<activation>(grad, x, gate, bias, baseline, grad_x);
      });
      if (args.grad_x)
        args.grad_x[i] = from_compute<T>(grad_x);
      if (unit && args.grad_gate.data)
        store_element(args.grad_gate, i, grad_gate);
      gate_sum += grad_gate;
      bias_sum += grad_x;
    };
#pragma unroll 1
    for (int64_t i = first + lane; i < vector_first; i += lanes)
      single(i);
    for (int64_t i = vector_first + lane * kElements; i < vector_last;
         i += lanes * kElements) {
      const auto grad = load_vector<T, kElements>(args.grad + i);
      const auto x = load_vector<T, kElements>(args.x + i);
      Acc gate[kElements];
      if constexpr (unit) {
        load_elements(args.gate, i, args.gate_aligned, gate);
      } else {
#pragma unroll
        for (int k = 0; k < kElements; ++k)
          gate[k] = shared_gate;
      }
      Acc grad_gate[kElements];
      Acc grad_x[kElements];
      with_activation(args.activation, [&]<Activation activation>() {
#pragma unroll
        for (int k = 0; k < kElements; ++k)
          grad_gate[k] = backward_element<activation>(
              grad.value[k], x.value[k], gate[k], bias, baseline, grad_x[k]);
      });
#pragma unroll
      for (int k = 0; k < kElements; ++k) {
        gate_sum += grad_gate[k];
        bias_sum += grad_x[k];
      }
      if (args.grad_x)
        store_elements_as<T>(args.grad_x, i, true, grad_x);
      if (unit && args.grad_gate.data)
        store_elements(args.grad_gate, i, args.gate_aligned, grad_gate);
    }
#pragma unroll 1
    for (int64_t i = vector_last + lane; i < last; i += lanes)
      single(i);
  }
};

template <class T, bool unit, int lanes>
__global__ void __launch_bounds__(kStreamThreads, kBackwardBlocks<T>)
    gated_backward_row_kernel(
        const __grid_constant__ GatedBackwardArguments<T> args) {
  GatedBackwardRowBody<T, unit, lanes>{args}.run();
}

// Channel innermost: a block takes a piece of the channels and a chunk of the
// positions of one input. `lanes` neighbouring threads cover the channels,
// kElements (or, unaligned, one) each; groups of them take every groups-th
// position and are added through shared memory.
constexpr int kPositionsPerGroup = 8;

template <class T, bool unit, int elements>
struct GatedBackwardChannelBody {
  using Acc = ComputeOf<T>;

  const GatedBackwardArguments<T>& args;
  const int lanes;
  Acc* const shared;  // [kStreamThreads * elements]

  // Adds the groups of one channel, always in the same order.
  __device__ __forceinline__ void store_sums(const Acc (&sum)[elements],
                                             int64_t first_channel,
                                             Acc* to) const {
    const int slots = lanes * elements;
#pragma unroll
    for (int k = 0; k < elements; ++k)
      shared[threadIdx.x * elements + k] = sum[k];
    __syncthreads();
    for (int slot = threadIdx.x; slot < slots; slot += kStreamThreads) {
      if (first_channel + slot >= args.channels)
        break;
      Acc total = 0;
      for (int at = slot; at < kStreamThreads * elements; at += slots)
        total += shared[at];
      to[first_channel + slot] = total;
    }
    __syncthreads();
  }

  __device__ __forceinline__ void run() const {
    const int lane = threadIdx.x % lanes;
    const int group = threadIdx.x / lanes;
    const int groups = kStreamThreads / lanes;
    const int64_t slots = static_cast<int64_t>(lanes) * elements;
    const int64_t columns = (args.channels + slots - 1) / slots;
    const int64_t positions = static_cast<int64_t>(groups) * kPositionsPerGroup;
    const int64_t items = args.batch * args.chunks * columns;
    for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
      const int64_t first_channel = item % columns * slots;
      const int64_t piece = item / columns;  // n * chunks + chunk
      const int64_t n = piece / args.chunks;
      const int64_t first = piece % args.chunks * positions;
      const int64_t last = min_of<int64_t>(first + positions, args.space);
      const int64_t channel = first_channel + lane * elements;
      Acc gate_sum[elements] = {};
      Acc bias_sum[elements] = {};
      // Channels are a multiple of `elements`: a lane has all or none.
      if (channel < args.channels) {
        Acc gate[elements];
        Acc bias[elements];
        Acc baseline[elements];
        load_channels(args.bias, channel, args.channels_aligned, Acc(-0.0),
                      bias);
        load_channels(args.baseline, channel, args.channels_aligned, Acc(0),
                      baseline);
        if constexpr (!unit)
          load_elements(args.gate, n * args.gate_stride + channel,
                        args.gate_aligned, gate);
        for (int64_t position = first + group; position < last;
             position += groups) {
          const int64_t i =
              (n * args.space + position) * args.channels + channel;
          const auto grad = load_vector<T, elements>(args.grad + i);
          const auto x = load_vector<T, elements>(args.x + i);
          if constexpr (unit)
            load_elements(args.gate, i, args.gate_aligned, gate);
          Acc grad_gate[elements];
          Acc grad_x[elements];
          with_activation(args.activation, [&]<Activation activation>() {
#pragma unroll
            for (int k = 0; k < elements; ++k)
              grad_gate[k] = backward_element<activation>(
                  grad.value[k], x.value[k], gate[k], bias[k], baseline[k],
                  grad_x[k]);
          });
#pragma unroll
          for (int k = 0; k < elements; ++k) {
            gate_sum[k] += grad_gate[k];
            bias_sum[k] += grad_x[k];
          }
          if (args.grad_x)
            store_elements_as<T>(args.grad_x, i, true, grad_x);
          if (unit && args.grad_gate.data)
            store_elements(args.grad_gate, i, args.gate_aligned, grad_gate);
        }
      }
      if (!unit && args.gate_sums)
        store_sums(gate_sum, first_channel,
                   args.gate_sums + piece * args.channels);
      if (args.bias_sums)
        store_sums(bias_sum, first_channel,
                   args.bias_sums + piece * args.channels);
    }
  }
};

template <class T, bool unit, int elements>
__global__ void __launch_bounds__(kStreamThreads, kBackwardBlocks<T>)
    gated_backward_channel_kernel(
        const __grid_constant__ GatedBackwardArguments<T> args, int lanes) {
  PATHWAYS_SHARED(shared, ComputeOf<T>[kStreamThreads * elements]);
  GatedBackwardChannelBody<T, unit, elements>{args, lanes, shared}.run();
}

// result[i * channels + c] = sum over a and k of
// sums[i * item_stride + a * outer_stride + k * inner_stride + c * stride].
struct SumLayout {
  int64_t items, channels, outer, inner;
  int64_t item_stride, outer_stride, inner_stride, channel_stride;
};

// One warp per result.
template <class Acc>
__global__ void __launch_bounds__(kStreamThreads, kStreamBlocks)
    add_partial_sums_kernel(const Acc* __restrict__ sums, SumLayout layout,
                            Elements result) {
  constexpr int kWarps = kStreamThreads / kWarpSize;
  const int lane = threadIdx.x % kWarpSize;
  const int64_t terms = layout.outer * layout.inner;
  for (int64_t index =
           static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarpSize;
       index < layout.items * layout.channels;
       index += static_cast<int64_t>(gridDim.x) * kWarps) {
    const Acc* from = sums + index / layout.channels * layout.item_stride +
                      index % layout.channels * layout.channel_stride;
    double sum = 0;
    for (int64_t k = lane; k < terms; k += kWarpSize)
      sum += from[k / layout.inner * layout.outer_stride +
                  k % layout.inner * layout.inner_stride];
    sum = group_sum<kWarpSize>(sum);
    if (lane == 0)
      store_element(result, index, sum);
  }
}

inline GatedBackwardPlan make_gated_backward_plan(const GatedShape& shape,
                                                  ElementType type,
                                                  const void* grad,
                                                  const void* x,
                                                  const void* grad_x) {
  GatedBackwardPlan plan;
  plan.shape = shape.folded();
  const bool aligned = is_aligned(grad) && is_aligned(x) && is_aligned(grad_x);
  if (!plan.shape.channel_innermost) {
    plan.vectors = aligned;
    plan.chunks = ceil_div(plan.shape.space, kChunkElements);
    return plan;
  }
  int64_t elements = kVectorBytes / sizeof(float);
  with_floating_type(type,
                     [&]<class T>() { elements = kVectorBytes / sizeof(T); });
  plan.vectors = aligned && plan.shape.channels % elements == 0;
  const int64_t columns =
      plan.vectors ? plan.shape.channels / elements : plan.shape.channels;
  plan.lanes = 1;
  while (plan.lanes < columns && plan.lanes < kWarpSize)
    plan.lanes *= 2;
  plan.chunks = ceil_div(plan.shape.space,
                         kStreamThreads / plan.lanes * kPositionsPerGroup);
  return plan;
}

template <class T, bool unit>
void launch_gated_backward_mode(const GatedBackwardArguments<T>& args,
                                const GatedBackwardPlan& plan,
                                const Device& device) {
  constexpr int kElements = kVectorBytes / sizeof(T);
  if (!plan.shape.channel_innermost) {
    const bool is_short = plan.shape.space < kShortRow;
    const int lanes = is_short ? kShortRowLanes : kWarpSize;
    const unsigned grid =
        stream_grid(ceil_div(plan.sum_count(), kStreamThreads / lanes), device);
    const auto kernel =
        is_short ? &gated_backward_row_kernel<T, unit, kShortRowLanes>
                 : &gated_backward_row_kernel<T, unit, kWarpSize>;
    PATHWAYS_LAUNCH(kernel, grid, kStreamThreads, 0, device.stream, args);
  } else {
    const int64_t slots =
        static_cast<int64_t>(plan.lanes) * (plan.vectors ? kElements : 1);
    const int64_t items =
        plan.shape.batch * plan.chunks * ceil_div(plan.shape.channels, slots);
    const unsigned grid = stream_grid(items, device);
    const auto kernel = plan.vectors
                            ? &gated_backward_channel_kernel<T, unit, kElements>
                            : &gated_backward_channel_kernel<T, unit, 1>;
    PATHWAYS_LAUNCH(kernel, grid, kStreamThreads, 0, device.stream, args,
                    plan.lanes);
  }
}

template <class Acc>
void launch_add_partial_sums(const Acc* sums, const GatedBackwardPlan& plan,
                             bool per_input, Elements result,
                             const Device& device) {
  const int64_t batch = plan.shape.batch;
  const int64_t channels = plan.shape.channels;
  const bool innermost = plan.shape.channel_innermost;
  SumLayout layout{};
  layout.items = per_input ? batch : 1;
  layout.outer = per_input ? 1 : batch;
  layout.channels = channels;
  layout.inner = plan.chunks;
  layout.item_stride = layout.outer_stride = channels * plan.chunks;
  layout.inner_stride = innermost ? channels : 1;
  layout.channel_stride = innermost ? 1 : plan.chunks;
  const unsigned grid = stream_grid(
      ceil_div(layout.items * channels, kStreamThreads / kWarpSize), device);
  const auto kernel = &add_partial_sums_kernel<Acc>;
  PATHWAYS_LAUNCH(kernel, grid, kStreamThreads, 0, device.stream, sums, layout,
                  result);
}

template <class T>
void launch_gated_backward(const GatedBackwardCall& call,
                           const GatedBackwardPlan& plan,
                           const Device& device) {
  using Acc = ComputeOf<T>;
  constexpr int kElements = kVectorBytes / sizeof(T);
  const GatedShape& shape = plan.shape;
  if (shape.channels == 0)
    return;
  if (shape.count() > 0) {
    GatedBackwardArguments<T> args{};
    args.grad = static_cast<const T*>(call.grad);
    args.x = static_cast<const T*>(call.x);
    args.grad_x = static_cast<T*>(call.grad_x);
    args.gate = call.gate;
    args.bias = static_cast<const Acc*>(call.bias);
    args.baseline = static_cast<const Acc*>(call.baseline);
    if (shape.unit)
      args.grad_gate = call.grad_gate;
    else if (call.grad_gate.data)
      args.gate_sums = static_cast<Acc*>(call.gate_sums);
    if (call.grad_bias.data)
      args.bias_sums = static_cast<Acc*>(call.bias_sums);
    args.batch = shape.batch;
    args.channels = shape.channels;
    args.space = shape.space;
    args.gate_stride = shape.per_input ? shape.channels : 0;
    args.chunks = plan.chunks;
    args.activation = call.activation;
    args.aligned = plan.vectors;
    args.gate_aligned = plan.vectors && is_aligned(call.gate.data) &&
                        is_aligned(call.grad_gate.data) &&
                        (shape.unit || shape.channels % kElements == 0);
    args.channels_aligned = plan.vectors && is_aligned(call.bias) &&
                            is_aligned(call.baseline) &&
                            shape.channels % kElements == 0;
    if (shape.unit)
      launch_gated_backward_mode<T, true>(args, plan, device);
    else
      launch_gated_backward_mode<T, false>(args, plan, device);
  }
  // Over an empty batch or space the sums are zero all the same.
  if (!shape.unit && call.grad_gate.data &&
      (!shape.per_input || shape.batch > 0))
    launch_add_partial_sums(static_cast<const Acc*>(call.gate_sums), plan,
                            shape.per_input, call.grad_gate, device);
  if (call.grad_bias.data)
    launch_add_partial_sums(static_cast<const Acc*>(call.bias_sums), plan,
                            false, call.grad_bias, device);
}

inline void launch_gated_backward(const GatedBackwardCall& call,
                                  const GatedBackwardPlan& plan,
                                  const Device& device) {
  with_floating_type(call.type, [&]<class T>() {
    launch_gated_backward<T>(call, plan, device);
  });
}

}  // namespace pathways::cuda
