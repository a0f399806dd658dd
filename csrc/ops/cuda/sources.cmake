# The CUDA half of libpathways: <op>_kernel.cu holds the kernels (no torch
# runtime), <op>_kernel.cpp the checks, the allocation and the registration.
set(PATHWAYS_CUDA_KERNELS
    adaptive_avg_max_pool2d_kernel.cu
    binarize_kernel.cu
    class_frequency_kernel.cu
    class_overlap_kernel.cu
    device.cu
    gated_backward_kernel.cu
    gated_forward_kernel.cu
    pack_bits_kernel.cu
    pairwise_kernel.cu)
set(PATHWAYS_CUDA_SOURCES
    ${PATHWAYS_CUDA_KERNELS}
    adaptive_avg_max_pool2d_kernel.cpp
    binarize_kernel.cpp
    class_frequency_kernel.cpp
    class_overlap_kernel.cpp
    gated_backward_kernel.cpp
    gated_forward_kernel.cpp
    launch_scope.cpp
    pack_bits_kernel.cpp
    pairwise_kernel.cpp)
