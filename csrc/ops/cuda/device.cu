// The calls into the CUDA runtime that are not kernel launches. The runtime is
// linked statically: the library then loads where there is no CUDA at all.
#include "launch.h"

#include <cuda_runtime.h>

namespace pathways::cuda {

static_assert(sizeof(Stream) == sizeof(cudaStream_t));

const char* select_device(int index, void* stream, Device* device) {
  // torch has made the device current in its own copy of the runtime; ours is
  // told as well.
  cudaError_t error = cudaSetDevice(index);
  if (error == cudaSuccess)
    error = cudaDeviceGetAttribute(&device->multiprocessors,
                                   cudaDevAttrMultiProcessorCount, index);
  device->stream = static_cast<Stream>(stream);
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

const char* take_launch_error() {
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace pathways::cuda
