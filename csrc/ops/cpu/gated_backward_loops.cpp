#include "gated_lanes.h"

namespace pathways {
namespace PATHWAYS_VARIANT {
namespace {

// A sum of lanes in double. Floats come as 16 lanes, doubles as 8.
struct WideSum {
  Lanes<double> low = all(0.0);
  Lanes<double> high = all(0.0);

  PATHWAYS_LANES void add(const Lanes<float>& value) {
    add_wide(value, low, high);
  }
  PATHWAYS_LANES void add(const Lanes<double>& value) { low = low + value; }
  PATHWAYS_LANES double total() const { return sum_of(low + high); }
};

// gate_grad_x and gate_grad_gate of core/activations.h.
template <typename C>
struct Gradients {
  Lanes<C> x;
  Lanes<C> gate;
};

template <Activation kAct, typename C>
PATHWAYS_LANES Gradients<C> gradients(const Lanes<C>& grad, const Lanes<C>& x,
                                      const Lanes<C>& gate,
                                      const Lanes<C>& bias,
                                      const Lanes<C>& baseline) {
  const Tangent<C> at = tangent<kAct>(x + bias);
  const Lanes<C> zero = all(C(0));
  return {select(gate == zero, zero, grad * gate * at.slope),
          grad * (at.value - baseline)};
}

// Up to kSumChunk elements in the compute type. What is not wanted is null.
template <typename C>
struct Chunk {
  int64_t count;
  const C* grad;
  const C* x;
  const C* gate;  // one each, or
  C one_gate;     // the same for all when `gate` is null
  C* grad_x;
  C* grad_gate;
  bool past;  // grad_x is large and aligned: past the caches
};

// Reads and writes lanes at i, all of them or the first `count`.
struct WholeStep {
  template <typename C>
  PATHWAYS_LANES static Lanes<C> read(const C* from, int64_t i, int64_t) {
    return load(from + i);
  }
  template <typename C>
  PATHWAYS_LANES static void write(C* to, int64_t i, const Lanes<C>& value,
                                   int64_t) {
    store(to + i, value);
  }
};

struct PartStep {
  template <typename C>
  PATHWAYS_LANES static Lanes<C> read(const C* from, int64_t i, int64_t count) {
    return load_part(from + i, count);
  }
  template <typename C>
  PATHWAYS_LANES static void write(C* to, int64_t i, const Lanes<C>& value,
                                   int64_t count) {
    store_part(to + i, value, count);
  }
};

template <typename C, typename Access>
PATHWAYS_LANES void write_x(const Chunk<C>& chunk, Access, int64_t i,
                            const Lanes<C>& value, int64_t count) {
  if (chunk.grad_x == nullptr) {
    return;
  }
  if (chunk.past && i % Lanes<C>::kCount == 0 && count == Lanes<C>::kCount) {
    stream(chunk.grad_x + i, value);
  } else {
    Access::write(chunk.grad_x, i, value, count);
  }
}

// All of one channel. Adds to the sums, over the chunk in the compute type.
template <typename C>
struct ChannelChunk {
  template <Activation kAct>
  struct With {
    static void run(const Chunk<C>& chunk, C bias, C baseline,
                    WideSum* gate_total, WideSum* bias_total) {
      constexpr int64_t kStep = Lanes<C>::kCount;
      Lanes<C> gate_sum = all(C(0));
      Lanes<C> bias_sum = all(C(0));
      const Chunk<C> c = chunk;
      const auto step = [&](auto access, int64_t i, int64_t count) {
        using Access = decltype(access);
        const Gradients<C> to = gradients<kAct>(
            Access::read(c.grad, i, count), Access::read(c.x, i, count),
            c.gate ? Access::read(c.gate, i, count) : all(c.one_gate),
            all(bias), all(baseline));
        write_x(c, access, i, to.x, count);
        if (c.grad_gate) {
          Access::write(c.grad_gate, i, to.gate, count);
        }
        return to;
      };
      int64_t i = 0;
      for (; i + kStep <= c.count; i += kStep) {
        const Gradients<C> to = step(WholeStep{}, i, kStep);
        gate_sum = gate_sum + to.gate;
        bias_sum = bias_sum + to.x;
      }
      const int64_t rest = c.count - i;
      if (rest > 0) {
        // Lanes over the end of the chunk, some of them a second time; a chunk
        // that is too short for that leaves lanes of act(bias) - baseline
        // times 0, perhaps NaN. The sums take the new ones only.
        const bool fits = c.count >= kStep;
        const Gradients<C> to = fits ? step(WholeStep{}, c.count - kStep, kStep)
                                     : step(PartStep{}, i, rest);
        const Lanes<C> zero = all(C(0));
        const Mask<C> first = first_lanes<C>(fits ? kStep - rest : rest);
        gate_sum = gate_sum + (fits ? select(first, zero, to.gate)
                                    : select(first, to.gate, zero));
        bias_sum = bias_sum + (fits ? select(first, zero, to.x)
                                    : select(first, to.x, zero));
      }
      gate_total->add(gate_sum);
      bias_total->add(bias_sum);
    }
  };
};

// A bias and a baseline for each element. Adds to sums for each element.
template <typename C>
struct ElementChunk {
  template <Activation kAct>
  struct With {
    static void run(const Chunk<C>& chunk, const C* bias, const C* baseline,
                    C* gate_sum, C* bias_sum) {
      constexpr int64_t kStep = Lanes<C>::kCount;
      const Chunk<C> c = chunk;
      const auto step = [&](auto access, int64_t i, int64_t count) {
        using Access = decltype(access);
        const Gradients<C> to = gradients<kAct>(
            Access::read(c.grad, i, count), Access::read(c.x, i, count),
            Access::read(c.gate, i, count), Access::read(bias, i, count),
            Access::read(baseline, i, count));
        write_x(c, access, i, to.x, count);
        if (c.grad_gate) {
          Access::write(c.grad_gate, i, to.gate, count);
        }
        if (gate_sum) {
          Access::write(gate_sum, i, Access::read(gate_sum, i, count) + to.gate,
                        count);
        }
        if (bias_sum) {
          Access::write(bias_sum, i, Access::read(bias_sum, i, count) + to.x,
                        count);
        }
      };
      int64_t i = 0;
      for (; i + kStep <= c.count; i += kStep) {
        step(WholeStep{}, i, kStep);
      }
      if (i < c.count) {
        step(PartStep{}, i, c.count - i);
      }
    }
  };
};

// Calls run(chunk) for `count` elements from `at` on, with the unit gates of
// the call, or else with `gate` or `one_gate`.
template <typename T, typename Run>
PATHWAYS_LANES void with_chunk(const GatedBackwardCall& call, int64_t at,
                               int64_t count, const ComputeType<T>* gate,
                               ComputeType<T> one_gate, const Run& run) {
  using C = ComputeType<T>;
  C grad_buffer[kBlock];
  C x_buffer[kBlock];
  C gate_buffer[kBlock];
  C grad_x_buffer[kBlock];
  C grad_gate_buffer[kBlock];
  const bool narrow_gate = kNarrow<T> && call.gate_type == call.type;
  T* grad_x = call.grad_x ? static_cast<T*>(call.grad_x) + at : nullptr;
  Chunk<C> chunk;
  chunk.count = count;
  chunk.grad =
      widened(static_cast<const T*>(call.grad) + at, count, grad_buffer);
  chunk.x = widened(static_cast<const T*>(call.x) + at, count, x_buffer);
  chunk.gate =
      call.shape.unit ? widened_gate<T>(call, at, count, gate_buffer) : gate;
  chunk.one_gate = one_gate;
  chunk.grad_gate = call.grad_gate == nullptr ? nullptr
                    : narrow_gate ? grad_gate_buffer
                                  : static_cast<C*>(call.grad_gate) + at;
  if constexpr (kNarrow<T>) {
    chunk.grad_x = grad_x ? grad_x_buffer : nullptr;
    chunk.past = false;
    run(chunk);
    if (grad_x) {
      convert(grad_x_buffer, grad_x, count);
    }
    if (call.grad_gate && narrow_gate) {
      convert(grad_gate_buffer, static_cast<T*>(call.grad_gate) + at, count);
    }
  } else {
    chunk.grad_x = grad_x;
    chunk.past =
        call.large && reinterpret_cast<uintptr_t>(grad_x) % kLaneBytes == 0;
    run(chunk);
  }
}

template <typename T, typename C = ComputeType<T>>
void contiguous(const GatedBackwardCall& call, int64_t begin, int64_t end) {
  const GatedShape& shape = call.shape;
  const auto run = row_of<ChannelChunk<C>::template With>(call.activation);
  const C* gates = static_cast<const C*>(call.gate);
  const C* biases = static_cast<const C*>(call.bias);
  const C* baselines = static_cast<const C*>(call.baseline);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t c = row % shape.channels;
    const C gate = shape.unit ? C(1) : gates[shape.per_input ? row : c];
    WideSum gate_total;
    WideSum bias_total;
    if (gate == C(0) && !call.gate_sums) {
      // Nothing depends on x.
      if (call.grad_x) {
        std::memset(static_cast<T*>(call.grad_x) + row * shape.space, 0,
                    static_cast<size_t>(shape.space) * sizeof(T));
      }
    } else {
      for (int64_t i = 0; i < shape.space; i += kSumChunk) {
        with_chunk<T>(
            call, row * shape.space + i, min_of(kSumChunk, shape.space - i),
            nullptr, gate, [&](const Chunk<C>& chunk) {
              run(chunk, biases[c], baselines[c], &gate_total, &bias_total);
            });
      }
    }
    if (call.gate_sums) {
      call.gate_sums[row] = gate_total.total();
    }
    if (call.bias_sums) {
      call.bias_sums[row] = bias_total.total();
    }
  }
  if (call.large) {
    stream_end();
  }
}

template <typename C>
void sum_positions(const C* sums, int64_t period, int64_t channels,
                   double* totals) {
  for (int64_t c = 0; c < channels; ++c) {
    double total = 0.0;
    for (int64_t i = c; i < period; i += channels) {
      total += static_cast<double>(sums[i]);
    }
    totals[c] = total;
  }
}

template <typename T, typename C = ComputeType<T>>
void innermost(const GatedBackwardCall& call, int64_t task, void* scratch) {
  const GatedShape& shape = call.shape;
  const auto run = row_of<ElementChunk<C>::template With>(call.activation);
  const int64_t per_input = shape.space * shape.channels;
  const int64_t n = task / call.chunks_per_input();
  const int64_t first = task % call.chunks_per_input() * call.rows_per_chunk();
  const int64_t last =
      min_of(first + call.rows_per_chunk(), call.rows_per_input());
  const C* gates = static_cast<const C*>(call.gate) +
                   (shape.per_input ? n * call.period : 0);
  const C* biases = static_cast<const C*>(call.bias);
  const C* baselines = static_cast<const C*>(call.baseline);
  C* gate_sum = static_cast<C*>(scratch);
  C* bias_sum = gate_sum + call.period;
  std::memset(scratch, 0, 2 * sizeof(C) * static_cast<size_t>(call.period));
  for (int64_t row = first; row < last; ++row) {
    const int64_t start = row * call.period;
    const int64_t count = min_of(call.period, per_input - start);
    for (int64_t i = 0; i < count; i += kBlock) {
      with_chunk<T>(call, n * per_input + start + i, min_of(kBlock, count - i),
                    gates + i, C(0), [&](const Chunk<C>& chunk) {
                      run(chunk, biases + i, baselines + i,
                          call.gate_sums ? gate_sum + i : nullptr,
                          call.bias_sums ? bias_sum + i : nullptr);
                    });
    }
  }
  if (call.large) {
    stream_end();
  }
  if (call.gate_sums) {
    sum_positions(gate_sum, call.period, shape.channels,
                  call.gate_sums + task * shape.channels);
  }
  if (call.bias_sums) {
    sum_positions(bias_sum, call.period, shape.channels,
                  call.bias_sums + task * shape.channels);
  }
}

void contiguous_any(const GatedBackwardCall& call, int64_t begin, int64_t end) {
  with_type(call.type, [&](auto type) {
    contiguous<typename decltype(type)::type>(call, begin, end);
  });
}

void innermost_any(const GatedBackwardCall& call, int64_t task, void* scratch) {
  with_type(call.type, [&](auto type) {
    innermost<typename decltype(type)::type>(call, task, scratch);
  });
}

}  // namespace

extern const GatedBackwardLoops gated_backward_loops = {&contiguous_any,
                                                        &innermost_any};

}  // namespace PATHWAYS_VARIANT
}  // namespace pathways
