#include "launch_scope.h"

#include <dlfcn.h>
#include <torch/csrc/stable/c/shim.h>

namespace pathways::cuda {

namespace {

using StreamFunction = AOTITorchError (*)(int32_t, void**);

// The function lives in libtorch_cuda, which a CPU build of torch does not
// have. One library must load under both, so it is looked up when the first
// CUDA tensor arrives instead of being linked: by then libtorch_cuda is loaded.
// A weak symbol would not do: Python loads torch with local symbols. From torch
// 2.13 on, torch_stream_native_handle of libtorch_cpu could serve.
StreamFunction stream_function() {
  static const StreamFunction function = [] {
    constexpr const char* kName = "aoti_torch_get_current_cuda_stream";
    void* symbol = dlsym(RTLD_DEFAULT, kName);
    if (symbol == nullptr) {
      if (void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD)) {
        symbol = dlsym(library, kName);
        dlclose(library);
      }
    }
    return reinterpret_cast<StreamFunction>(symbol);
  }();
  return function;
}

}  // namespace

const char* require_cuda(const char* op) {
  PATHWAYS_CHECK(stream_function() != nullptr, op,
                 ": CUDA tensors need a torch with CUDA, and libtorch_cuda is "
                 "not loaded");
  return op;
}

void* current_stream(const char* op, int32_t device) {
  void* stream = nullptr;
  PATHWAYS_CHECK(stream_function()(device, &stream) == 0, op,
                 ": torch has no current CUDA stream on device ", device);
  return stream;
}

}  // namespace pathways::cuda
