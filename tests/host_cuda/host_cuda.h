// The CUDA kernels of csrc/ops/cuda compiled for the CPU, behind a C interface:
// tests/cuda/test_host_*.py call it with the pointers of CPU tensors,
// driver.cpp with memory of its own, under sanitizers. Functions that return
// text return null, or what went wrong. The number of multiprocessors makes
// grids small, so that grid-stride loops take several trips.
#pragma once

#include <cstdint>

extern "C" {

void host_cuda_set_order(unsigned seed);

const char* host_cuda_gated_forward(int64_t type, const void* x, void* y,
                                    int64_t gate_type, const void* gate,
                                    const void* bias, const void* baseline,
                                    int64_t activation, const int64_t* sizes,
                                    const bool* flags, int64_t multiprocessors);

const char* host_cuda_gated_backward(int64_t type, const void* grad,
                                     const void* x, int64_t gate_type,
                                     const void* gate, const void* bias,
                                     const void* baseline, int64_t activation,
                                     void* grad_x, void* grad_gate,
                                     int64_t bias_type, void* grad_bias,
                                     const int64_t* sizes, const bool* flags,
                                     int64_t multiprocessors);

const char* host_cuda_binarize(int64_t type, const void* importance,
                               int64_t count, void* mask,
                               int64_t multiprocessors);

const char* host_cuda_binarize_backward(int64_t type, const void* grad,
                                        const void* importance, int64_t count,
                                        double sigma, double gamma,
                                        void* result, int64_t multiprocessors);

// sizes: N, C, H, W, rows, columns.
const char* host_cuda_adaptive_pool(int64_t type, const void* x, void* y,
                                    const int64_t* sizes, bool innermost,
                                    int64_t multiprocessors);

const char* host_cuda_pack_bits(int64_t element_size, bool floating,
                                const void* mask, int64_t row_stride,
                                int64_t column_stride, int64_t rows,
                                int64_t size, uint64_t* words,
                                int64_t multiprocessors);

const char* host_cuda_unpack_bits(const uint64_t* words, int64_t row_stride,
                                  int64_t rows, int64_t size, uint8_t* mask,
                                  int64_t multiprocessors);

const char* host_cuda_pairwise_intersection(const uint64_t* a, int64_t stride_a,
                                            int64_t rows_a, const uint64_t* b,
                                            int64_t stride_b, int64_t rows_b,
                                            int64_t words, int64_t product,
                                            int32_t* out,
                                            int64_t multiprocessors);

const char* host_cuda_pairwise_iou(const uint64_t* a, int64_t stride_a,
                                   int64_t rows_a, const uint64_t* b,
                                   int64_t stride_b, int64_t rows_b,
                                   int64_t words, int64_t product, float* out,
                                   int64_t multiprocessors);

const char* host_cuda_class_overlap(const uint64_t* words, int64_t stride,
                                    int64_t rows, int64_t words_per_row,
                                    const int64_t* labels, int64_t classes,
                                    int64_t product, double* out,
                                    int64_t multiprocessors);

const char* host_cuda_class_frequency(const uint64_t* words, int64_t stride,
                                      int64_t rows, int64_t size,
                                      const int64_t* labels, int64_t classes,
                                      int64_t* out, int64_t multiprocessors);

// One product of fragments: four words of A, two of B and four sums for each of
// 32 lanes.
const char* host_cuda_mma(const uint32_t* a, const uint32_t* b, int32_t* sum);

// The rule that chooses a kernel for bit products. Null wish: not set. Returns
// the BitProduct, or -1 for a wish that is none.
int64_t host_cuda_choose_bit_product(const char* wish, int64_t capability,
                                     int64_t code, int64_t multiprocessors,
                                     int64_t rows_a, int64_t rows_b);

// `out` holds 64 floats.
const char* host_cuda_planted(const char* name, float* out);

}  // extern "C"
