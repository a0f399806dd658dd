#include "gated_lanes.h"

namespace pathways {
namespace PATHWAYS_VARIANT {
namespace {

template <typename T>
PATHWAYS_LANES int64_t elements_to_boundary(const T* address) {
  const auto past = reinterpret_cast<uintptr_t>(address) % kLaneBytes;
  return static_cast<int64_t>((kLaneBytes - past) / sizeof(T));
}

// y = body(i) for the lanes that start at i, in steps that cover 0 to count
// - 1. count >= kCount: the last step overlaps the one before, and is computed
// first because y may be what body reads. `past`: past the caches, for large
// results in memory that body does not read.
template <typename C, typename Body>
PATHWAYS_LANES void for_steps(C* y, int64_t count, bool past,
                              const Body& body) {
  constexpr int64_t kStep = Lanes<C>::kCount;
  const int64_t last = count - kStep;
  const Lanes<C> end = body(last);
  int64_t i = 0;
  if (past) {
    store(y, body(0));
    for (i = elements_to_boundary(y); i < last; i += kStep) {
      stream(y + i, body(i));
    }
  } else {
    for (; i < last; i += kStep) {
      store(y + i, body(i));
    }
  }
  store(y + last, end);
}

template <typename C>
void fill(C* y, int64_t count, C value, bool past) {
  const Lanes<C> lanes = all(value);
  if (count < Lanes<C>::kCount) {
    store_part(y, lanes, count);
    return;
  }
  for_steps(y, count, past, [&](int64_t) { return lanes; });
}

// gate_value of core/activations.h.
template <Activation kAct, typename C>
PATHWAYS_LANES Lanes<C> gate_value(const Lanes<C>& x, const Lanes<C>& gate,
                                   const Lanes<C>& bias,
                                   const Lanes<C>& baseline) {
  const Lanes<C> one = all(C(1));
  const Lanes<C> open = activate<kAct>(x + bias);
  const Lanes<C> mixed = gate * open + (one - gate) * baseline;
  return select(gate == all(C(0)), baseline, select(gate == one, open, mixed));
}

// x of one channel, whose gate is not 0.
template <typename C>
struct ChannelRow {
  template <Activation kAct>
  struct With {
    static void run(const C* x, C* y, int64_t count, bool past, C gate, C bias,
                    C baseline) {
      const Lanes<C> biases = all(bias);
      const auto step = [&](const Lanes<C>& lanes) {
        const Lanes<C> open = activate<kAct>(lanes + biases);
        return gate == C(1) ? open
                            : all(gate) * open + all((C(1) - gate) * baseline);
      };
      if (count < Lanes<C>::kCount) {
        store_part(y, step(load_part(x, count)), count);
        return;
      }
      for_steps(y, count, past, [&](int64_t i) { return step(load(x + i)); });
    }
  };
};

// What an ElementRow has beside x and gates.
enum class Companions {
  kNone,        // gates of 0 and 1, no bias, a baseline of 0
  kOne,         // one bias and one baseline for all elements
  kForElements  // one of each for every element
};

// x and a gate for each element.
template <typename C>
struct ElementRow {
  template <Activation kAct>
  struct With {
    static void run(const C* x, const C* gate, C* y, int64_t count, bool past,
                    const C* bias, const C* baseline, Companions companions) {
      if (count < Lanes<C>::kCount) {
        const bool each = companions == Companions::kForElements;
        const Lanes<C> result = gate_value<kAct>(
            load_part(x, count), load_part(gate, count),
            each ? load_part(bias, count) : all(*bias),
            each ? load_part(baseline, count) : all(*baseline));
        store_part(y, result, count);
        return;
      }
      switch (companions) {
        case Companions::kNone:
          return for_steps(y, count, past, [&](int64_t i) {
            const Lanes<C> zero = all(C(0));
            return select(load(gate + i) == zero, zero,
                          activate<kAct>(load(x + i)));
          });
        case Companions::kOne:
          return for_steps(y, count, past, [&](int64_t i) {
            return gate_value<kAct>(load(x + i), load(gate + i), all(*bias),
                                    all(*baseline));
          });
        case Companions::kForElements:
          return for_steps(y, count, past, [&](int64_t i) {
            return gate_value<kAct>(load(x + i), load(gate + i), load(bias + i),
                                    load(baseline + i));
          });
      }
    }
  };
};

// Calls row(i, x, y, count, past) with x and y in the compute type, where i is
// the number of elements before this call.
template <typename T, typename Row>
PATHWAYS_LANES void in_blocks(const T* x, T* y, int64_t count, bool past,
                              const Row& row) {
  if constexpr (kNarrow<T>) {
    float buffer[kBlock];
    for (int64_t i = 0; i < count; i += kBlock) {
      const int64_t size = min_of(kBlock, count - i);
      row(i, widened(x + i, size, buffer), buffer, size, false);
      convert(buffer, y + i, size);
    }
  } else {
    row(0, x, y, count, past);
  }
}

template <typename T, typename C = ComputeType<T>>
void contiguous(const GatedForwardCall& call, int64_t begin, int64_t end) {
  const GatedShape& shape = call.shape;
  const auto channel_row =
      row_of<ChannelRow<C>::template With>(call.activation);
  const auto element_row =
      row_of<ElementRow<C>::template With>(call.activation);
  const T* x = static_cast<const T*>(call.x);
  T* y = static_cast<T*>(call.y);
  const C* gates = static_cast<const C*>(call.gate);
  const C* biases = static_cast<const C*>(call.bias);
  const C* baselines = static_cast<const C*>(call.baseline);
  // In place, the line that is written has just been read.
  const bool past = call.large && call.x != call.y;
  int64_t row = begin / shape.space;
  int64_t c = row % shape.channels;
  // Not by division: rows can be short.
  const auto next_row = [&] {
    ++row;
    c = c + 1 == shape.channels ? 0 : c + 1;
  };
  for (int64_t i = begin; i < end; next_row()) {
    int64_t count = min_of((row + 1) * shape.space, end) - i;
    if (shape.unit) {
      in_blocks(
          x + i, y + i, count, past,
          [&](int64_t k, const C* from, C* to, int64_t size, bool beyond) {
            C buffer[kBlock];
            element_row(from, widened_gate<T>(call, i + k, size, buffer), to,
                        size, beyond, biases + c, baselines + c,
                        Companions::kOne);
          });
    } else {
      const C gate = gates[shape.per_input ? row : c];
      // Rows that are treated alike are one longer row.
      while (call.bare && shape.per_input && i + count < end &&
             gates[row + 1] == gate) {
        count = min_of(count + shape.space, end - i);
        next_row();
      }
      if (gate == C(0)) {
        in_blocks(x + i, y + i, count, call.large,
                  [&](int64_t, const C*, C* to, int64_t size, bool beyond) {
                    fill(to, size, baselines[c], beyond);
                  });
      } else {
        in_blocks(
            x + i, y + i, count, past,
            [&](int64_t, const C* from, C* to, int64_t size, bool beyond) {
              channel_row(from, to, size, beyond, gate, biases[c],
                          baselines[c]);
            });
      }
    }
    i += count;
  }
  if (call.large) {
    stream_end();
  }
}

template <typename T, typename C = ComputeType<T>>
void innermost(const GatedForwardCall& call, int64_t begin, int64_t end) {
  const GatedShape& shape = call.shape;
  const auto element_row =
      row_of<ElementRow<C>::template With>(call.activation);
  const int64_t rows = call.rows_per_input();
  const int64_t per_input = shape.space * shape.channels;
  const bool past = call.large && call.x != call.y;
  const Companions companions =
      call.plain_masks ? Companions::kNone : Companions::kForElements;
  const C* biases = static_cast<const C*>(call.bias);
  const C* baselines = static_cast<const C*>(call.baseline);
  for (int64_t index = begin; index < end; ++index) {
    const int64_t n = index / rows;
    const int64_t start = index % rows * call.period;
    const int64_t count = min_of(call.period, per_input - start);
    const int64_t at = n * per_input + start;
    const C* gates = static_cast<const C*>(call.gate) +
                     (shape.per_input ? n * call.period : 0);
    in_blocks(static_cast<const T*>(call.x) + at, static_cast<T*>(call.y) + at,
              count, past,
              [&](int64_t k, const C* from, C* to, int64_t size, bool beyond) {
                C buffer[kBlock];
                const C* gate =
                    shape.unit ? widened_gate<T>(call, at + k, size, buffer)
                               : gates + k;
                element_row(from, gate, to, size, beyond, biases + k,
                            baselines + k, companions);
              });
  }
  if (past) {
    stream_end();
  }
}

void contiguous_any(const GatedForwardCall& call, int64_t begin, int64_t end) {
  with_type(call.type, [&](auto type) {
    contiguous<typename decltype(type)::type>(call, begin, end);
  });
}

void innermost_any(const GatedForwardCall& call, int64_t begin, int64_t end) {
  with_type(call.type, [&](auto type) {
    innermost<typename decltype(type)::type>(call, begin, end);
  });
}

}  // namespace

extern const GatedForwardLoops gated_forward_loops = {&contiguous_any,
                                                      &innermost_any};

}  // namespace PATHWAYS_VARIANT
}  // namespace pathways
