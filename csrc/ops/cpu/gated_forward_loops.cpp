#include "gated_lanes.h"

namespace pathways {
namespace PATHWAYS_VARIANT {
namespace {

template <typename T>
PATHWAYS_LANES int64_t elements_to_boundary(const T* address) {
  const auto past = reinterpret_cast<uintptr_t>(address) % kLaneBytes;
  return past == 0 ? 0 : static_cast<int64_t>((kLaneBytes - past) / sizeof(T));
}

// How a result meets the caches.
enum class Store {
  kCached,  // through them
  kPast,    // past them: large results in memory that is not read
  kInPlace  // over what was read
};

// How far ahead memory is asked for that is read and written in place. The
// processor's own prefetching ends at every page; from the third cache on this
// takes 3/4 of its time. Where reads and writes are two streams it gains
// nothing.
constexpr int64_t kAheadBytes = 1 << 14;

PATHWAYS_LANES Store store_of(const GatedForwardCall& call) {
  if (call.x == call.y) {
    return Store::kInPlace;
  }
  return call.large ? Store::kPast : Store::kCached;
}

// y = body(i) for the lanes that start at i, in steps that cover 0 to count
// - 1. count >= kCount: the last step overlaps the one before, and is computed
// first because y may be what body reads.
template <typename C, typename Body>
PATHWAYS_LANES void for_steps(C* y, int64_t count, Store kind,
                              const Body& body) {
  constexpr int64_t kStep = Lanes<C>::kCount;
  const int64_t last = count - kStep;
  const Lanes<C> end = body(last);
  int64_t i = 0;
  switch (kind) {
    case Store::kCached:
      for (; i < last; i += kStep) {
        store(y + i, body(i));
      }
      break;
    case Store::kPast:
      // A line that is stored partly past the caches and partly through them
      // is fetched for it: only what crosses a boundary is stored through.
      i = elements_to_boundary(y);
      if (i != 0) {
        store(y, body(0));
      }
      for (; i < last; i += kStep) {
        stream(y + i, body(i));
      }
      if (i == last) {
        return stream(y + last, end);
      }
      break;
    case Store::kInPlace:
      for (; i < last; i += kStep) {
        __builtin_prefetch(reinterpret_cast<const char*>(y + i) + kAheadBytes,
                           1);
        store(y + i, body(i));
      }
      break;
  }
  store(y + last, end);
}

template <typename C>
void fill(C* y, int64_t count, C value, Store kind) {
  const Lanes<C> lanes = all(value);
  if (count < Lanes<C>::kCount) {
    store_part(y, lanes, count);
    return;
  }
  for_steps(y, count, kind, [&](int64_t) { return lanes; });
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
    static void run(const C* x, C* y, int64_t count, Store kind, C gate, C bias,
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
      for_steps(y, count, kind, [&](int64_t i) { return step(load(x + i)); });
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
    static void run(const C* x, const C* gate, C* y, int64_t count, Store kind,
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
          return for_steps(y, count, kind, [&](int64_t i) {
            const Lanes<C> zero = all(C(0));
            return select(load(gate + i) == zero, zero,
                          activate<kAct>(load(x + i)));
          });
        case Companions::kOne:
          return for_steps(y, count, kind, [&](int64_t i) {
            return gate_value<kAct>(load(x + i), load(gate + i), all(*bias),
                                    all(*baseline));
          });
        case Companions::kForElements:
          return for_steps(y, count, kind, [&](int64_t i) {
            return gate_value<kAct>(load(x + i), load(gate + i), load(bias + i),
                                    load(baseline + i));
          });
      }
    }
  };
};

// Calls row(i, x, y, count, kind) with x and y in the compute type, where i is
// the number of elements before this call.
template <typename T, typename Row>
PATHWAYS_LANES void in_blocks(const T* x, T* y, int64_t count, Store kind,
                              const Row& row) {
  if constexpr (kNarrow<T>) {
    float buffer[kBlock];
    for (int64_t i = 0; i < count; i += kBlock) {
      const int64_t size = min_of(kBlock, count - i);
      row(i, widened(x + i, size, buffer), buffer, size, Store::kCached);
      convert(buffer, y + i, size);
    }
  } else {
    row(0, x, y, count, kind);
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
  const Store kind = store_of(call);
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
      in_blocks(x + i, y + i, count, kind,
                [&](int64_t k, const C* from, C* to, int64_t size, Store how) {
                  C buffer[kBlock];
                  element_row(from, widened_gate<T>(call, i + k, size, buffer),
                              to, size, how, biases + c, baselines + c,
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
        // Nothing is read here, so that this may go past the caches in place
        // too.
        in_blocks(x + i, y + i, count, call.large ? Store::kPast : kind,
                  [&](int64_t, const C*, C* to, int64_t size, Store how) {
                    fill(to, size, baselines[c], how);
                  });
      } else {
        in_blocks(x + i, y + i, count, kind,
                  [&](int64_t, const C* from, C* to, int64_t size, Store how) {
                    channel_row(from, to, size, how, gate, biases[c],
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
  const Store kind = store_of(call);
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
              count, kind,
              [&](int64_t k, const C* from, C* to, int64_t size, Store how) {
                C buffer[kBlock];
                const C* gate =
                    shape.unit ? widened_gate<T>(call, at + k, size, buffer)
                               : gates + k;
                element_row(from, gate, to, size, how, biases + k,
                            baselines + k, companions);
              });
  }
  if (kind == Store::kPast) {
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
