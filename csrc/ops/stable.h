#pragma once

// What torch/csrc/stable does not offer, or not well, at our target version.
// Each can go when the stable headers have it.

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <string>

#include "check.h"

namespace pathways {

// A `str` argument of an op. Not std::string: torch's conversion to one (2.10
// to 2.14, ToImpl<std::string>) copies the text into a string on the heap that
// nobody deletes, 48 bytes lost at every call.
struct Text {
  std::string value;
  operator const std::string&() const { return value; }
};

}  // namespace pathways

template <>
struct torch::stable::detail::ToImpl<pathways::Text> {
  static pathways::Text call(StableIValue argument, uint64_t, bool) {
    const auto handle = torch::stable::detail::to<StringHandle>(argument);
    size_t length = 0;
    const char* data = nullptr;
    TORCH_ERROR_CODE_CHECK(torch_string_length(handle, &length));
    TORCH_ERROR_CODE_CHECK(torch_string_c_str(handle, &data));
    pathways::Text text{std::string(data, length)};
    TORCH_ERROR_CODE_CHECK(torch_delete_string(handle));
    return text;
  }
};

namespace pathways {

// An uninitialised tensor on the device of `like`. Not by
// torch::stable::new_empty: that goes through the boxed dispatcher, which takes
// longer than a small kernel.
inline Tensor empty_strided(const Tensor& like, int64_t dims,
                            const int64_t* sizes, const int64_t* strides,
                            ScalarType type) {
  int32_t device_type = 0;
  int32_t device_index = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  TORCH_ERROR_CODE_CHECK(
      aoti_torch_get_device_index(like.get(), &device_index));
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      dims, sizes, strides,
      torch::stable::detail::to<int32_t>(torch::stable::detail::from(type)),
      device_type, device_index, &handle));
  return Tensor(handle);
}

// With the sizes and strides of `like`, which must be dense.
inline Tensor empty_in_layout_of(const Tensor& like, ScalarType type) {
  return empty_strided(like, like.dim(), like.sizes().data(),
                       like.strides().data(), type);
}

inline Tensor empty_in_layout_of(const Tensor& like) {
  return empty_in_layout_of(like, like.scalar_type());
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
