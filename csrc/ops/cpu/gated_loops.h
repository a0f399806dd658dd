#pragma once

// What the loops of gated_forward and _gated_backward work on. bias, baseline
// and channel gates are in the compute type (double for double, else float).

#include <cstdint>

#include "../../core/activations.h"
#include "../../core/element_type.h"
#include "../../core/gated_shape.h"
#include "variant.h"

namespace pathways {

// Channel vectors of tensors with channels innermost are repeated until their
// length fits the lanes of every type, where that stays short: the loops then
// run over `period` numbers at a time, which are period / C positions.
struct GatedCall {
  ElementType type;       // of x, y, grad and grad_x
  ElementType gate_type;  // unit gates: `type` or the compute type
  Activation activation;
  GatedShape shape;  // folded
  int64_t period;    // channels innermost only
  const void* x;
  const void* gate;      // innermost: channel gates [N or 1, period]
  const void* bias;      // [C]; innermost: [period]
  const void* baseline;  // likewise
  bool bare;             // there is neither a bias nor a baseline

  int64_t positions_per_row() const { return period / shape.channels; }
  // Channels innermost: rows of `period` numbers in one input; the last one
  // may be shorter.
  int64_t rows_per_input() const {
    return (shape.space + positions_per_row() - 1) / positions_per_row();
  }
};

struct GatedForwardCall : GatedCall {
  void* y;  // may be x
  // Channels innermost: bare, and every gate is 0 or 1.
  bool plain_masks;
  // Large results go past the caches.
  bool large;
};

struct GatedForwardLoops {
  // Elements [begin, end) of x in the memory order N, C, space.
  void (*contiguous)(const GatedForwardCall& call, int64_t begin, int64_t end);
  // Rows [begin, end) of N * rows_per_input(), channels innermost.
  void (*innermost)(const GatedForwardCall& call, int64_t begin, int64_t end);
};

// Sums run in the compute type over at most kSumChunk elements, then in double:
// the error does not grow with the size of the map.
constexpr int64_t kSumChunk = 256;

struct GatedBackwardCall : GatedCall {
  const void* grad;
  void* grad_x;       // null when not needed
  void* grad_gate;    // unit gates only, of gate_type; null when not needed
  double* gate_sums;  // channel gates only; null when not needed
  double* bias_sums;  // null when not needed
  bool large;         // grad_x goes past the caches

  // Channels innermost: rows in a chunk, and chunks in an input.
  int64_t rows_per_chunk() const {
    const int64_t rows = kSumChunk / positions_per_row();
    return rows > 0 ? rows : 1;
  }
  int64_t chunks_per_input() const {
    return (rows_per_input() + rows_per_chunk() - 1) / rows_per_chunk();
  }
};

struct GatedBackwardLoops {
  // Rows [begin, end) of N * C; the sums have a value for each row.
  void (*contiguous)(const GatedBackwardCall& call, int64_t begin, int64_t end);
  // One of N * chunks_per_input() chunks; the sums have a row [C] for each.
  // `scratch` holds 2 * period numbers of the compute type, at a multiple of
  // 64 bytes.
  void (*innermost)(const GatedBackwardCall& call, int64_t chunk,
                    void* scratch);
};

PATHWAYS_VARIANT_TABLE(GatedForwardLoops, gated_forward_loops);
PATHWAYS_VARIANT_TABLE(GatedBackwardLoops, gated_backward_loops);

}  // namespace pathways
