// Body of gated_forward and gated_forward_: one pass over x, 16 bytes per
// access. Where a gate is zero x is not read; in place, y is x.
#pragma once

#include "gated_layout.cuh"

namespace pathways::cuda {

template <class T>
struct GatedForwardArguments {
  using Acc = ComputeOf<T>;
  const T* x;
  T* y;
  ConstElements gate;
  const Acc* bias;      // [C] or null
  const Acc* baseline;  // [C] or null
  Radix radix;
  Digits step;  // from one vector of a thread to its next
  int64_t count;
  int64_t gate_stride;  // C for a gate per input, 0 for a shared one
  Activation activation;
  bool channel_innermost;
  bool aligned;           // x and y
  bool gate_aligned;      // vectors of gates, where the mode reads vectors
  bool channels_aligned;  // vectors of bias and baseline
};

template <class T, GateMode mode>
struct GatedForwardBody {
  using Acc = ComputeOf<T>;
  static constexpr int kElements = kVectorBytes / sizeof(T);
  static constexpr int64_t kBlockElements = int64_t{kStreamThreads} * kElements;
  // Gates of a vector of x (that of its row and that of the next), and vectors
  // in flight at once: the gates of the other modes take the registers (and,
  // per element, are a stream themselves), and so does double arithmetic.
  static constexpr int kGates = mode == GateMode::kRow ? 2 : kElements;
  static constexpr int kUnroll =
      mode == GateMode::kRow && sizeof(T) < sizeof(double) ? 2 : 1;

  const GatedForwardArguments<T>& args;

  __device__ __forceinline__ bool innermost() const {
    return mode == GateMode::kChannel ||
           (mode == GateMode::kUnit && args.channel_innermost);
  }

  __device__ __forceinline__ int64_t gate_index(int64_t index,
                                                const Digits& at) const {
    if constexpr (mode == GateMode::kUnit)
      return index;
    else if constexpr (mode == GateMode::kRow)
      return at.a * args.gate_stride + at.b;
    else
      return at.a * args.gate_stride + at.r;
  }

  // Elements of a vector at `at` that are in its row: all of them, or the rest
  // are in the next row and have the next gate. Rows are of any length, so that
  // with 7 x 7 values to a channel nearly every warp meets such a vector.
  __device__ __forceinline__ int in_row(const Digits& at) const {
    return static_cast<int>(
        min_of<int64_t>(kElements, args.radix.inner - at.r));
  }

  __device__ __forceinline__ Digits next_row(const Digits& at) const {
    return args.radix.add(at, {0, 0, in_row(at)});
  }

  __device__ __forceinline__ void load_gates(int64_t index, const Digits& at,
                                             Acc (&gate)[kGates]) const {
    if constexpr (mode == GateMode::kRow) {
      gate[0] = load_element<Acc>(args.gate, gate_index(index, at));
      gate[1] =
          in_row(at) < kElements
              ? load_element<Acc>(args.gate, gate_index(index, next_row(at)))
              : gate[0];
    } else {
      load_elements(args.gate, gate_index(index, at), args.gate_aligned, gate);
    }
  }

  // A whole vector at `index` whose elements share a row of the layout, or for
  // one gate to a row, two rows.
  __device__ __forceinline__ bool is_whole(int64_t index,
                                           const Digits& at) const {
    if (!args.aligned || index + kElements > args.count)
      return false;
    if (mode == GateMode::kUnit && !args.bias && !args.baseline)
      return true;
    if (mode == GateMode::kRow && args.radix.inner >= kElements)
      return true;
    return at.r + kElements <= args.radix.inner;
  }

  __device__ __forceinline__ void single(int64_t index, Digits at) const {
    const Digits one{0, 0, 1};
#pragma unroll 1
    for (int k = 0; k < kElements && index < args.count; ++k, ++index) {
      const int64_t channel = innermost() ? at.r : at.b;
      const Acc gate = load_element<Acc>(args.gate, gate_index(index, at));
      const Acc x = gate != Acc(0) ? to_compute<Acc>(args.x[index]) : Acc(0);
      const Acc bias = bias_at(args.bias, channel);
      const Acc baseline = baseline_at(args.baseline, channel);
      with_activation(args.activation, [&]<Activation activation>() {
        args.y[index] =
            from_compute<T>(gate_value<activation>(x, gate, bias, baseline));
      });
      at = args.radix.add(at, one);
    }
  }

  // Bias or baseline of a vector, in the form of its gates.
  __device__ __forceinline__ void load_channel_values(const Acc* from,
                                                      Acc absent,
                                                      const Digits& at,
                                                      Acc (&to)[kGates]) const {
    if constexpr (mode == GateMode::kRow) {
      to[0] = from ? from[at.b] : absent;
      to[1] = from && in_row(at) < kElements ? from[next_row(at).b] : to[0];
    } else if (innermost()) {
      load_channels(from, at.r, args.channels_aligned, absent, to);
    } else {
#pragma unroll
      for (int k = 0; k < kElements; ++k)
        to[k] = from ? from[at.b] : absent;
    }
  }

  // Element k of a vector with `same` elements in its own row.
  static __device__ __forceinline__ Acc pick(const Acc (&values)[kGates],
                                             int same, int k) {
    if constexpr (mode == GateMode::kRow)
      return k < same ? values[0] : values[1];
    else
      return values[k];
  }

  __device__ __forceinline__ void whole(int64_t index, const Digits& at,
                                        const Acc (&gate)[kGates],
                                        const Vector<T, kElements>& x) const {
    Acc bias[kGates];
    Acc baseline[kGates];
    load_channel_values(args.bias, Acc(-0.0), at, bias);
    load_channel_values(args.baseline, Acc(0), at, baseline);
    const int same = in_row(at);
    Vector<T, kElements> y;
    with_activation(args.activation, [&]<Activation activation>() {
#pragma unroll
      for (int k = 0; k < kElements; ++k)
        y.value[k] = from_compute<T>(gate_value<activation>(
            to_compute<Acc>(x.value[k]), pick(gate, same, k),
            pick(bias, same, k), pick(baseline, same, k)));
    });
    store_vector(args.y + index, y);
  }

  __device__ __forceinline__ void run() const {
    const int64_t stride = static_cast<int64_t>(gridDim.x) * kBlockElements;
    int64_t index = static_cast<int64_t>(blockIdx.x) * kBlockElements +
                    static_cast<int64_t>(threadIdx.x) * kElements;
    if (index >= args.count)
      return;
    Digits at = args.radix.split(index);
    while (index < args.count) {
      // Loads of all vectors first, so that they overlap.
      Digits positions[kUnroll];
      Vector<T, kElements> x[kUnroll] = {};
      Acc gate[kUnroll][kGates];
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        positions[u] = at;
        if (is_whole(index + u * stride, at)) {
          load_gates(index + u * stride, at, gate[u]);
          bool any = false;
#pragma unroll
          for (int k = 0; k < kGates; ++k)
            any |= gate[u][k] != Acc(0);
          if (any)
            x[u] = load_vector<T, kElements>(args.x + index + u * stride);
        }
        at = args.radix.add(at, args.step);
      }
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        if (is_whole(index + u * stride, positions[u]))
          whole(index + u * stride, positions[u], gate[u], x[u]);
        else
          single(index + u * stride, positions[u]);
      }
      index += kUnroll * stride;
    }
  }
};

template <class T, GateMode mode>
__global__ void __launch_bounds__(kStreamThreads, kStreamBlocks)
    gated_forward_kernel(
        const __grid_constant__ GatedForwardArguments<T> args) {
  GatedForwardBody<T, mode>{args}.run();
}

template <class T, GateMode mode>
void launch_gated_forward_mode(GatedForwardArguments<T> args,
                               const Device& device) {
  using Body = GatedForwardBody<T, mode>;
  const unsigned grid =
      stream_grid(ceil_div(args.count, Body::kBlockElements), device);
  args.step = args.radix.split(grid * Body::kBlockElements);
  const auto kernel = &gated_forward_kernel<T, mode>;
  PATHWAYS_LAUNCH(kernel, grid, kStreamThreads, 0, device.stream, args);
}

template <class T>
void launch_gated_forward(const GatedForwardCall& call, const Device& device) {
  using Acc = ComputeOf<T>;
  constexpr int kElements = kVectorBytes / sizeof(T);
  const GatedShape shape = call.shape.folded();
  GatedForwardArguments<T> args{};
  args.x = static_cast<const T*>(call.x);
  args.y = static_cast<T*>(call.y);
  args.gate = call.gate;
  args.bias = static_cast<const Acc*>(call.bias);
  args.baseline = static_cast<const Acc*>(call.baseline);
  args.radix = radix_of(shape);
  args.count = shape.count();
  args.gate_stride = shape.per_input ? shape.channels : 0;
  args.activation = call.activation;
  args.channel_innermost = shape.channel_innermost;
  args.aligned = is_aligned(call.x) && is_aligned(call.y);
  const bool whole_channels = shape.channels % kElements == 0;
  args.gate_aligned =
      is_aligned(call.gate.data) && (shape.unit || whole_channels);
  args.channels_aligned =
      is_aligned(call.bias) && is_aligned(call.baseline) && whole_channels;
  switch (gate_mode(shape)) {
    case GateMode::kRow:
      return launch_gated_forward_mode<T, GateMode::kRow>(args, device);
    case GateMode::kChannel:
      return launch_gated_forward_mode<T, GateMode::kChannel>(args, device);
    case GateMode::kUnit:
      return launch_gated_forward_mode<T, GateMode::kUnit>(args, device);
  }
}

inline void launch_gated_forward(const GatedForwardCall& call,
                                 const Device& device) {
  if (call.shape.count() == 0)
    return;
  with_floating_type(call.type,
                     [&]<class T>() { launch_gated_forward<T>(call, device); });
}

}  // namespace pathways::cuda
