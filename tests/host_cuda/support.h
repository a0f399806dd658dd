// What the files of the C interface share.
#pragma once

#include "shim.h"
// After the shim, which stands in for nvcc.
#include "../../csrc/ops/cuda/common.cuh"
#include "host_cuda.h"

namespace host_cuda {

namespace cuda = pathways::cuda;

inline thread_local std::string last_error;

template <class Function>
const char* guarded(const Function& function) {
  try {
    function();
    return nullptr;
  } catch (const std::exception& error) {
    last_error = error.what();
    return last_error.c_str();
  }
}

inline cuda::Device device_of(int64_t multiprocessors) {
  return {static_cast<int>(multiprocessors), 80, 80, nullptr};
}

// Room for sums: an overflow is seen by a sanitizer, and a value that was never
// written shows in the result.
template <class T>
std::vector<T> scratch(int64_t count) {
  return std::vector<T>(static_cast<size_t>(count), static_cast<T>(-0x7777));
}

}  // namespace host_cuda
