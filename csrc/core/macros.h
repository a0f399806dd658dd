#pragma once

// Functions marked PATHWAYS_HOST_DEVICE compile for the CPU with any C++20
// compiler and for both sides with nvcc, so that one definition of the
// arithmetic serves every back end.
#if defined(__CUDACC__)
#define PATHWAYS_HOST_DEVICE __host__ __device__
#else
#define PATHWAYS_HOST_DEVICE
#endif
