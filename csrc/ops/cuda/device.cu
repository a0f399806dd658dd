// The calls into the CUDA runtime that are not kernel launches. The runtime is
// linked statically: the library then loads where there is no CUDA at all.
#include "launch.h"

#include <cuda_runtime.h>

#include <algorithm>

namespace pathways::cuda {

static_assert(sizeof(Stream) == sizeof(cudaStream_t));

const char* select_device(int index, void* stream, Device* device) {
  // torch has made the device current in its own copy of the runtime; ours is
  // told as well.
  cudaError_t error = cudaSetDevice(index);
  int major = 0;
  int minor = 0;
  const auto ask = [&](cudaDeviceAttr attribute, int* value) {
    if (error == cudaSuccess)
      error = cudaDeviceGetAttribute(value, attribute, index);
  };
  ask(cudaDevAttrMultiProcessorCount, &device->multiprocessors);
  ask(cudaDevAttrComputeCapabilityMajor, &major);
  ask(cudaDevAttrComputeCapabilityMinor, &minor);
  device->capability = 10 * major + minor;
  // Older than the device where its own architecture was left out of the build:
  // instructions that the code could not be compiled to are not in it.
  constexpr int kArchitectures[] = {__CUDA_ARCH_LIST__};
  device->code = 0;
  for (const int architecture : kArchitectures)
    if (architecture / 10 <= device->capability)
      device->code = std::max(device->code, architecture / 10);
  device->stream = static_cast<Stream>(stream);
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

const char* take_launch_error() {
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace pathways::cuda
