#pragma once

#include <cstdint>

namespace pathways {

// Bits that both rows of `width` words have; |row| when both are the same row.
// Exact for any size. Uses the level of core/cpu_capability.h.
int64_t intersection_count(const uint64_t* a, const uint64_t* b, int64_t width);

}  // namespace pathways
