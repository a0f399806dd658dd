#pragma once

// The shape of a gated tensor as the kernels see it: [N, C, space] in one of
// two memory orders.

#include <cstdint>

namespace pathways {

struct GatedShape {
  int64_t batch = 0;
  int64_t channels = 0;
  int64_t space = 1;
  bool unit = false;       // one gate per element of x, in the layout of x
  bool per_input = false;  // channel gates [N, C]; false: one row [C] for all
  bool channel_innermost = false;  // N, space, C instead of N, C, space

  int64_t count() const { return batch * channels * space; }

  // Without a space dimension both memory orders are the same bytes, a gate
  // per input is a gate per element, and the inputs take the place of the
  // space: neighbouring channels are then what is next to each other, and sums
  // over inputs run down the columns.
  GatedShape folded() const {
    if (space != 1) {
      return *this;
    }
    GatedShape result;
    result.batch = 1;
    result.channels = channels;
    result.space = batch;
    result.unit = unit || per_input;
    result.per_input = false;
    result.channel_innermost = true;
    return result;
  }
};

}  // namespace pathways
