// The instructions of csrc/ops/cuda/ptx.cuh on the CPU.
#pragma once

#include <cmath>

#include "fibers.h"

namespace shim {

// Not SHIM_PLAIN: the sanitizers are to see the accesses.
inline void land(const PendingCopy& copy) {
  char* to = static_cast<char*>(copy.to);
  const char* from = static_cast<const char*>(copy.from);
  for (int at = 0; at < copy.size; at += 8) {
    *reinterpret_cast<uint64_t*>(to + at) =
        at < copy.bytes ? *reinterpret_cast<const uint64_t*>(from + at) : 0;
  }
}

// Whether a copy lands when it is issued. The hardware may take until the wait;
// in ascending order all copies do, in a shuffled one about half of them.
SHIM_PLAIN bool lands_at_once() {
  return run_order.shuffle && random_below(2) == 0;
}

SHIM_PLAIN void issue_copy(const PendingCopy& copy) {
  Block* block = current_block;
  Fiber* self = block->current;
  if (reinterpret_cast<uintptr_t>(copy.to) % copy.size != 0 ||
      reinterpret_cast<uintptr_t>(copy.from) % copy.size != 0) {
    fail(block, "an asynchronous copy is not aligned");
  }
  if (copy.bytes % 8 != 0 || copy.bytes < 0 || copy.bytes > copy.size) {
    fail(block, "an asynchronous copy has an impossible size");
  }
  if (self->copy_count == kPendingCopies) {
    fail(block, "too many asynchronous copies under way");
  }
  self->copies[self->copy_count] = copy;
  self->copies[self->copy_count].group = self->group;
  ++self->copy_count;
}

// Takes the oldest copy that must have landed when only `pending` groups are
// left.
SHIM_PLAIN bool next_landing(unsigned pending, PendingCopy* copy) {
  Fiber* self = current_block->current;
  if (self->copy_count == 0 || self->copies[0].group + pending >= self->group) {
    return false;
  }
  *copy = self->copies[0];
  --self->copy_count;
  for (unsigned i = 0; i < self->copy_count; ++i) {
    self->copies[i] = self->copies[i + 1];
  }
  return true;
}

SHIM_PLAIN void close_group() {
  ++current_block->current->group;
}

// Fragments of mma.m16n8k256 as the PTX ISA describes them. Register r of a
// lane holds elements 32 r to 32 r + 31 of its part, element 32 r + i in bit i:
//   A  row = groupID for i < 32 and 64 <= i < 96, else groupID + 8
//      col = threadID_in_group * 32 + i % 32, + 128 for i >= 64
//   B  row = threadID_in_group * 32 + i % 32, + 128 for i >= 32; col = groupID
//   C  row = groupID for i < 2, else groupID + 8
//      col = threadID_in_group * 2 + i % 2
// with groupID = lane / 4 and threadID_in_group = lane % 4. The 32 elements of
// a register are neighbours in k, so one word of the matrices here.
SHIM_PLAIN void multiply_fragments(int32_t* sum, const uint32_t* a,
                                   const uint32_t* b) {
  Block* block = current_block;
  Fiber* self = block->current;
  Warp& warp = block->warps[self->warp];
  auto& fragment = warp.fragment[warp.epoch & 1];
  for (unsigned r = 0; r < 4; ++r) {
    fragment[self->lane][r] = a[r];
  }
  for (unsigned r = 0; r < 2; ++r) {
    fragment[self->lane][4 + r] = b[r];
  }
  warp_barrier(0xffffffffu, false);
  uint32_t matrix_a[16][8];
  uint32_t matrix_b[8][8];  // by column
  for (unsigned lane = 0; lane < kLanes; ++lane) {
    const unsigned group = lane / 4;
    const unsigned thread = lane % 4;
    for (unsigned r = 0; r < 4; ++r) {
      const unsigned i = 32 * r;
      const unsigned row = i < 32 || (64 <= i && i < 96) ? group : group + 8;
      const unsigned column = thread * 32 + (i >= 64 ? 128 : 0);
      matrix_a[row][column / 32] = fragment[lane][r];
    }
    for (unsigned r = 0; r < 2; ++r) {
      const unsigned row = thread * 32 + (32 * r >= 32 ? 128 : 0);
      matrix_b[group][row / 32] = fragment[lane][4 + r];
    }
  }
  for (unsigned i = 0; i < 4; ++i) {
    const unsigned row = self->lane / 4 + (i < 2 ? 0 : 8);
    const unsigned column = self->lane % 4 * 2 + i % 2;
    for (unsigned k = 0; k < 8; ++k) {
      sum[i] += __builtin_popcount(matrix_a[row][k] & matrix_b[column][k]);
    }
  }
}

}  // namespace shim

namespace pathways::cuda {

inline void mma_and_popc(int32_t (&sum)[4], const uint32_t (&a)[4],
                         const uint32_t (&b)[2]) {
  ::shim::multiply_fragments(sum, a, b);
}

template <int size>
void copy_async(void* shared, const void* global, int bytes) {
  static_assert(size == 8 || size == 16);
  const ::shim::PendingCopy copy{shared, global, bytes, size, 0};
  if (::shim::lands_at_once()) {
    ::shim::land(copy);
  } else {
    ::shim::issue_copy(copy);
  }
}

inline void commit_copies() {
  ::shim::close_group();
}

template <int pending>
void wait_for_copies() {
  ::shim::PendingCopy copy;
  while (::shim::next_landing(pending, &copy)) {
    ::shim::land(copy);
  }
}

template <class T>
void store_global(T* to, T value) {
  *to = value;
}

// Off by as much as the hardware's may be: exact, the next smaller or the next
// larger float.
inline float approximate_reciprocal(float value) {
  const float exact = 1.0f / value;
  uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof(bits));
  const uint32_t way = bits * 0x9e3779b1u >> 30;
  return way == 0   ? std::nextafterf(exact, 0.0f)
         : way == 1 ? std::nextafterf(exact, 2 * exact)
                    : exact;
}

}  // namespace pathways::cuda
