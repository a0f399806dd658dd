#pragma once

// Memory of large results.

#include <cstdint>

#include "../stable.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace pathways {

// From this size on glibc maps a block afresh at every allocation (the upper
// limit of its M_MMAP_THRESHOLD), and no private cache holds the result.
constexpr int64_t kLargeBytes = int64_t{32} << 20;

inline int64_t size_in_bytes(const Tensor& tensor) {
  return tensor.numel() * static_cast<int64_t>(tensor.element_size());
}

// Asks for pages of 2 MiB for a large result that nobody has written to yet:
// the page faults of small ones cost several times the arithmetic. A hint, so
// that a refusal changes nothing.
inline void prefer_huge_pages([[maybe_unused]] const Tensor& fresh) {
#if defined(__linux__)
  const int64_t bytes = size_in_bytes(fresh);
  if (bytes < kLargeBytes) {
    return;
  }
  constexpr uintptr_t kPage = 4096;
  const auto begin = reinterpret_cast<uintptr_t>(fresh.const_data_ptr());
  const uintptr_t first = (begin + kPage - 1) / kPage * kPage;
  const uintptr_t last =
      (begin + static_cast<uintptr_t>(bytes)) / kPage * kPage;
  madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

}  // namespace pathways
