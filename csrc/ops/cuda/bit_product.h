// Which kernel multiplies bit rows: popcounts on the integer units, or binary
// matrix instructions on tensor cores. Host code without a CUDA header; both
// give the same results, bit for bit.
#pragma once

#include <cstdint>
#include <string>

namespace pathways::cuda {

enum class BitProduct : int32_t {
  kPopc,    // 64 x 64 results for a block
  kMma64,   // 64 x 64
  kMma128,  // 128 x 128
};

// mma.m16n8k256 with .and.popc exists from sm_80 on. ptxas makes one
// instruction (BMMA) of it up to sm_90; tensor cores of sm_100 and later have
// no binary mode, and it becomes 8 integer products and some 100 instructions
// that spread bits into bytes. tools/cuda_gate.py checks the first half of this
// in the machine code.
constexpr int kFirstBinaryMma = 80;
constexpr int kFirstWithoutNativeBinaryMma = 100;

// `capability` is 10 * major + minor of the device, `code` the same of the
// architecture that the running code was compiled for.
constexpr bool has_binary_mma(int code) {
  return code >= kFirstBinaryMma;
}

constexpr bool has_native_binary_mma(int capability, int code) {
  return has_binary_mma(code) && capability < kFirstWithoutNativeBinaryMma;
}

// What PATHWAYS_CUDA_PAIRWISE asks for.
enum class BitProductWish : int32_t { kAutomatic, kPopc, kMma };

constexpr const char* kBitProductVariable = "PATHWAYS_CUDA_PAIRWISE";

// Reads the value of the variable, null when it is not set. Returns whether it
// is one of the three.
inline bool parse_bit_product_wish(const char* text, BitProductWish* wish) {
  const std::string value = text ? text : "auto";
  if (value == "auto" || value == "")
    *wish = BitProductWish::kAutomatic;
  else if (value == "popc")
    *wish = BitProductWish::kPopc;
  else if (value == "mma")
    *wish = BitProductWish::kMma;
  else
    return false;
  return true;
}

// The rule. The product has rows_a x rows_b results; a wish for mma needs
// has_binary_mma(code).
//
// Where the instruction is native it is chosen for every size: a multiprocessor
// counts 512 pairs of bits in a cycle by popcount (16 results of 32 bits), and
// 16384 by tensor core on sm_80, so that even a tile that is 1/16 full costs no
// more. The tile of 128 needs enough of them to give every multiprocessor one.
inline BitProduct choose_bit_product(BitProductWish wish, int capability,
                                     int code, int multiprocessors,
                                     int64_t rows_a, int64_t rows_b) {
  if (wish == BitProductWish::kPopc)
    return BitProduct::kPopc;
  if (wish == BitProductWish::kAutomatic &&
      !has_native_binary_mma(capability, code))
    return BitProduct::kPopc;
  const int64_t tiles = (rows_a + 127) / 128 * ((rows_b + 127) / 128);
  return tiles >= multiprocessors ? BitProduct::kMma128 : BitProduct::kMma64;
}

}  // namespace pathways::cuda
