#pragma once

// Which instruction sets the CPU kernels may use, found once at run time.
// PATHWAYS_CPU_CAPABILITY forces one of the levels that the machine has.

#include <cstdlib>
#include <stdexcept>
#include <string>
#include <string_view>

namespace pathways {

enum class CpuCapability : int {
  kScalar = 0,
  kAvx2 = 1,
  kAvx512 = 2,
  kNeon = 3
};

constexpr const char* kCpuCapabilityNames[] = {"scalar", "avx2", "avx512",
                                               "neon"};

inline const char* capability_name(CpuCapability capability) {
  return kCpuCapabilityNames[static_cast<int>(capability)];
}

// The best level of this machine. avx512 stands for the foundation, BW, DQ and
// VL sets together with VPOPCNTDQ.
inline CpuCapability detect_cpu_capability() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("f16c") && __builtin_cpu_supports("popcnt");
  if (avx2 && __builtin_cpu_supports("avx512f") &&
      __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512vpopcntdq")) {
    return CpuCapability::kAvx512;
  }
  return avx2 ? CpuCapability::kAvx2 : CpuCapability::kScalar;
#elif defined(__aarch64__)
  return CpuCapability::kNeon;
#else
  return CpuCapability::kScalar;
#endif
}

// True when code for `wanted` runs on a machine whose best level is `found`.
inline bool capability_runs_on(CpuCapability wanted, CpuCapability found) {
  if (wanted == CpuCapability::kScalar || wanted == found) {
    return true;
  }
  return wanted == CpuCapability::kAvx2 && found == CpuCapability::kAvx512;
}

// The level named by `forced` (null or empty: the best one). An unknown name or
// a level that the machine lacks is an error: a forced level that is silently
// another would make a test meaningless.
inline CpuCapability choose_cpu_capability(const char* forced,
                                           CpuCapability found) {
  const std::string_view name =
      forced == nullptr ? std::string_view() : std::string_view(forced);
  if (name.empty()) {
    return found;
  }
  for (int level = 0; level < 4; ++level) {
    if (name == kCpuCapabilityNames[level]) {
      const auto wanted = static_cast<CpuCapability>(level);
      if (!capability_runs_on(wanted, found)) {
        throw std::runtime_error(
            "PATHWAYS_CPU_CAPABILITY must be a level of this machine (at "
            "most " +
            std::string(capability_name(found)) + "), got '" +
            std::string(name) + "'");
      }
      return wanted;
    }
  }
  throw std::runtime_error(
      "PATHWAYS_CPU_CAPABILITY must be one of scalar, avx2, avx512, neon, got "
      "'" +
      std::string(name) + "'");
}

// The level in use, decided at the first call.
inline CpuCapability cpu_capability() {
  static const CpuCapability capability = choose_cpu_capability(
      std::getenv("PATHWAYS_CPU_CAPABILITY"), detect_cpu_capability());
  return capability;
}

}  // namespace pathways
