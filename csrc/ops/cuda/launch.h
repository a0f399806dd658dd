// The border between the two halves of a CUDA op: <op>_kernel.cpp (checks,
// allocation, registration; host compiler, stable ABI) calls the functions
// declared here, <op>_kernel.cu (nvcc, no torch runtime) defines them. No CUDA
// header is included, so that the first half compiles everywhere.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../../core/activations.h"
#include "../../core/element_type.h"
#include "../../core/gated_shape.h"
#include "../../core/pool_shape.h"
#include "../../core/quantizer.h"
#include "bit_product.h"

struct CUstream_st;

namespace pathways::cuda {

using Stream = CUstream_st*;  // the type that CUDA names cudaStream_t

// Where a kernel runs and how wide its grid may be.
struct Device {
  int multiprocessors;
  int capability;  // 10 * major + minor
  int code;        // the newest of our architectures that runs on it
  Stream stream;
};

// Makes `index` the current device of the CUDA runtime in this library.
// Returns null, or what went wrong.
const char* select_device(int index, void* stream, Device* device);

// What the launches since the last call reported: null, or what went wrong.
const char* take_launch_error();

struct ConstElements {
  const void* data;
  ElementType type;
};

struct Elements {
  void* data;
  ElementType type;
};

// Bytes of the widest memory access of one thread.
constexpr int kVectorBytes = 16;

inline bool is_aligned(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % kVectorBytes == 0;
}

constexpr int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

// --- gated_forward, _gated_backward -----------------------------------------

// bias and baseline: [C] in the compute type, or null.
struct GatedForwardCall {
  ElementType type;  // of x and y
  const void* x;
  void* y;  // may be x
  ConstElements gate;
  const void* bias;
  const void* baseline;
  Activation activation;
  GatedShape shape;
};

void gated_forward(const GatedForwardCall& call, const Device& device);

// How the sums of one call are cut. It depends on the shape, the element size
// and the alignment only, so the order of all additions is fixed.
struct GatedBackwardPlan {
  GatedShape shape;  // folded
  bool vectors = false;
  int lanes = 0;  // channel innermost only
  int64_t chunks = 0;

  // Partial sums of the gate gradient, and as many of the bias gradient.
  int64_t sum_count() const { return shape.batch * shape.channels * chunks; }
};

GatedBackwardPlan plan_gated_backward(const GatedShape& shape, ElementType type,
                                      const void* grad, const void* x,
                                      const void* grad_x);

// Results that are not wanted are null. The sums have room for sum_count()
// values of the compute type where such a gradient is wanted (gate_sums: for
// channel gates only).
struct GatedBackwardCall {
  ElementType type;  // of grad, x and grad_x
  const void* grad;
  const void* x;
  ConstElements gate;
  const void* bias;
  const void* baseline;
  Activation activation;
  void* grad_x;
  Elements grad_gate;
  Elements grad_bias;
  void* gate_sums;
  void* bias_sums;
};

void gated_backward(const GatedBackwardCall& call,
                    const GatedBackwardPlan& plan, const Device& device);

// --- binarize, _binarize_backward -------------------------------------------

void binarize(ElementType type, const void* importance, int64_t count,
              void* mask, const Device& device);
void binarize_backward(ElementType type, const void* grad,
                       const void* importance, int64_t count,
                       QuantizerConstants constants, void* result,
                       const Device& device);

// --- adaptive_avg_max_pool2d ------------------------------------------------

struct AdaptivePoolCall {
  ElementType type;  // of x and y
  const void* x;
  void* y;  // [N, 2 C, rows, columns]
  PoolShape shape;
};

void adaptive_avg_max_pool2d(const AdaptivePoolCall& call,
                             const Device& device);

// --- pack_bits, unpack_bits -------------------------------------------------

// Elements of `size` bytes; of floating point, the sign bit does not count.
void pack_bits(size_t element_size, bool floating, const void* mask,
               int64_t row_stride, int64_t column_stride, int64_t rows,
               int64_t size, uint64_t* words, const Device& device);
void unpack_bits(const uint64_t* words, int64_t row_stride, int64_t rows,
                 int64_t size, uint8_t* mask, const Device& device);

// --- packed rows ------------------------------------------------------------

struct PackedRows {
  const uint64_t* words;
  int64_t stride;  // words from one row to the next
  int64_t rows;
};

void row_count(const PackedRows& rows, int64_t words_per_row, int32_t* count,
               const Device& device);
void pairwise_intersection(const PackedRows& a, const PackedRows& b,
                           int64_t words_per_row, BitProduct product,
                           int32_t* out, const Device& device);
// count_a, count_b: row_count of the two.
void pairwise_iou(const PackedRows& a, const PackedRows& b,
                  int64_t words_per_row, BitProduct product,
                  const int32_t* count_a, const int32_t* count_b, float* out,
                  const Device& device);

// Rows are walked class by class; see class_tiles.h.
struct RowRun;
struct RunRange;

struct OverlapTables {
  const int64_t* order;  // [N]
  const RowRun* runs;
  int64_t run_count;
  const RunRange* groups;
  int64_t group_count;
  const int64_t* run_begin;    // [K + 1]
  const int64_t* group_begin;  // [K + 1]
};

// partial: run_count * group_count; out: classes * classes.
void class_overlap(const PackedRows& rows, int64_t words_per_row,
                   BitProduct product, const int32_t* row_count,
                   const OverlapTables& tables, int64_t classes,
                   double* partial, double* out, const Device& device);
// out: classes * size, zero.
void class_frequency(const PackedRows& rows, int64_t size, const int64_t* order,
                     const RowRun* runs, int64_t run_count, int64_t* out,
                     const Device& device);

}  // namespace pathways::cuda
