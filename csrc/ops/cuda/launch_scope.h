// What a CUDA op does around its launches, through the stable ABI only: device
// guard, current stream, launch check.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>

#include "../check.h"
#include "launch.h"

namespace pathways::cuda {

// Returns `op`; an error if torch has no CUDA.
const char* require_cuda(const char* op);

// The stream that torch uses on this device at the moment.
void* current_stream(const char* op, int32_t device);

class LaunchScope {
 public:
  LaunchScope(const char* op, const Tensor& on)
      : op_(require_cuda(op)), guard_(on.get_device_index()) {
    const int32_t index = on.get_device_index();
    const char* error =
        select_device(index, current_stream(op, index), &device_);
    PATHWAYS_CHECK(error == nullptr, op, ": CUDA reported: ", error);
  }

  const Device& device() const { return device_; }

  // To be called after the last launch.
  void check() const {
    const char* error = take_launch_error();
    PATHWAYS_CHECK(
        error == nullptr, op_,
        ": the kernel could not be launched, CUDA reported: ", error);
  }

 private:
  const char* op_;
  torch::stable::accelerator::DeviceGuard guard_;
  Device device_{};
};

inline ConstElements const_elements(const Tensor& tensor) {
  return {tensor.const_data_ptr(), element_type(tensor.scalar_type())};
}

inline Elements elements(const Tensor& tensor) {
  return {tensor.mutable_data_ptr(), element_type(tensor.scalar_type())};
}

inline const void* data_or_null(const std::optional<Tensor>& tensor) {
  return tensor.has_value() ? tensor->const_data_ptr() : nullptr;
}

}  // namespace pathways::cuda
