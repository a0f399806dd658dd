#pragma once

// Inner loops compiled once per instruction set. A file <name>_loops.cpp holds
// no torch header and is compiled by CMake for every variant of the target,
// each with its own compiler flags and with PATHWAYS_VARIANT as its namespace;
// it defines one table of functions there. The header <name>_loops.h declares
// the tables with
//
//   PATHWAYS_VARIANT_TABLE(NameLoops, name_loops);
//
// and name_loops() is then the table for cpu_capability(). Everything else in
// such a file is in an anonymous namespace: an inline function with external
// linkage could be merged by the linker with the copy of another variant, and
// run on a machine without its instructions.

#include "../../core/cpu_capability.h"

#if defined(__x86_64__)
#define PATHWAYS_VARIANT_TABLE(Table, name)             \
  namespace scalar {                                    \
  extern const Table name;                              \
  }                                                     \
  namespace avx2 {                                      \
  extern const Table name;                              \
  }                                                     \
  namespace avx512 {                                    \
  extern const Table name;                              \
  }                                                     \
  inline const Table& name() {                          \
    switch (cpu_capability()) {                         \
      case CpuCapability::kAvx512: return avx512::name; \
      case CpuCapability::kAvx2: return avx2::name;     \
      default: return scalar::name;                     \
    }                                                   \
  }                                                     \
  static_assert(true, "a semicolon follows")
#elif defined(__aarch64__)
#define PATHWAYS_VARIANT_TABLE(Table, name)                         \
  namespace scalar {                                                \
  extern const Table name;                                          \
  }                                                                 \
  namespace neon {                                                  \
  extern const Table name;                                          \
  }                                                                 \
  inline const Table& name() {                                      \
    return cpu_capability() == CpuCapability::kNeon ? neon::name    \
                                                    : scalar::name; \
  }                                                                 \
  static_assert(true, "a semicolon follows")
#else
#define PATHWAYS_VARIANT_TABLE(Table, name) \
  namespace scalar {                        \
  extern const Table name;                  \
  }                                         \
  inline const Table& name() {              \
    return scalar::name;                    \
  }                                         \
  static_assert(true, "a semicolon follows")
#endif
