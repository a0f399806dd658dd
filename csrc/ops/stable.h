#pragma once

// Calls that torch/csrc/stable does not offer yet at our target version, made
// through the dispatcher. Each can go when the stable headers gain a function
// of its own.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <optional>
#include <vector>

#include "check.h"

namespace pathways {

// aten::new_empty_strided: an uninitialised tensor with these sizes and strides
// on the device of `like`.
inline Tensor new_empty_strided(const Tensor& like,
                                const std::vector<int64_t>& sizes,
                                const std::vector<int64_t>& strides,
                                ScalarType type) {
  std::array<StableIValue, 7> stack{
      torch::stable::detail::from(like),
      torch::stable::detail::from(sizes),
      torch::stable::detail::from(strides),
      torch::stable::detail::from(std::optional<ScalarType>(type)),
      torch::stable::detail::from(std::optional<torch::headeronly::Layout>()),
      torch::stable::detail::from(std::optional<torch::stable::Device>()),
      torch::stable::detail::from(std::optional<bool>()),
  };
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(
      "aten::new_empty_strided", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// An uninitialised tensor of another dtype with the sizes and the strides of
// `like`, which must be dense.
inline Tensor empty_in_layout_of(const Tensor& like, ScalarType type) {
  std::vector<int64_t> sizes(like.sizes().begin(), like.sizes().end());
  std::vector<int64_t> strides(like.strides().begin(), like.strides().end());
  return new_empty_strided(like, sizes, strides, type);
}

// `tensor` with the memory order of the dense tensor `like` of the same shape,
// as `type`; itself when it already is.
inline Tensor in_layout_of(const Tensor& tensor, const Tensor& like,
                           ScalarType type) {
  bool same = tensor.scalar_type() == type;
  for (int64_t dim = 0; same && dim < like.dim(); ++dim) {
    same = like.size(dim) == 1 || tensor.stride(dim) == like.stride(dim);
  }
  if (same) {
    return tensor;
  }
  Tensor result = empty_in_layout_of(like, type);
  torch::stable::copy_(result, tensor);
  return result;
}

// A contiguous tensor of dtype `type`; itself when it already is.
inline Tensor contiguous_as(const Tensor& tensor, ScalarType type) {
  const Tensor result =
      tensor.scalar_type() == type ? tensor : torch::stable::to(tensor, type);
  // Asked here, because even a call that changes nothing goes through the
  // dispatcher.
  return result.is_contiguous() ? result : torch::stable::contiguous(result);
}

inline std::optional<Tensor> contiguous_as(const std::optional<Tensor>& tensor,
                                           ScalarType type) {
  return tensor.has_value()
             ? std::optional<Tensor>(contiguous_as(*tensor, type))
             : std::nullopt;
}

// Packed words with adjacent words next to each other in memory; rows keep
// whatever stride they have.
inline Tensor with_dense_rows(const Tensor& words) {
  return words.size(1) <= 1 || words.stride(1) == 1
             ? words
             : torch::stable::contiguous(words);
}

}  // namespace pathways
