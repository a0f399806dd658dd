#pragma once

// The ops as C++ functions, for programs that link libtorch and
// Pathways::pathways. Each calls the op of the same name through the
// dispatcher; what they do stands in pathways/ops/__init__.py. Gradients are
// recorded when Pathways::autograd is linked too.

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <optional>
#include <string_view>
#include <tuple>

namespace pathways {
namespace detail {

template <typename Signature, typename... Arguments>
auto call_op(const char* name, Arguments&&... arguments) {
  // Not kept in a static variable: the library may be loaded later.
  return c10::Dispatcher::singleton()
      .findSchemaOrThrow(name, "")
      .typed<Signature>()
      .call(std::forward<Arguments>(arguments)...);
}

using MaybeTensor = std::optional<at::Tensor>;

}  // namespace detail

inline at::Tensor gated_forward(const at::Tensor& x, const at::Tensor& gate,
                                const detail::MaybeTensor& bias = {},
                                std::string_view activation = "none",
                                const detail::MaybeTensor& baseline = {}) {
  return detail::call_op<at::Tensor(
      const at::Tensor&, const at::Tensor&, const detail::MaybeTensor&,
      std::string_view, const detail::MaybeTensor&)>(
      "pathways::gated_forward", x, gate, bias, activation, baseline);
}

inline void gated_forward_(at::Tensor& x, const at::Tensor& gate,
                           const detail::MaybeTensor& bias = {},
                           std::string_view activation = "none",
                           const detail::MaybeTensor& baseline = {}) {
  detail::call_op<void(at::Tensor&, const at::Tensor&,
                       const detail::MaybeTensor&, std::string_view,
                       const detail::MaybeTensor&)>(
      "pathways::gated_forward_", x, gate, bias, activation, baseline);
}

inline at::Tensor binarize(const at::Tensor& importance, double sigma = 1.0,
                           double gamma = 2.0) {
  return detail::call_op<at::Tensor(const at::Tensor&, double, double)>(
      "pathways::binarize", importance, sigma, gamma);
}

inline at::Tensor adaptive_avg_max_pool2d(const at::Tensor& x, int64_t height,
                                          int64_t width) {
  return detail::call_op<at::Tensor(const at::Tensor&, int64_t, int64_t)>(
      "pathways::adaptive_avg_max_pool2d", x, height, width);
}

inline at::Tensor pack_bits(const at::Tensor& mask) {
  return detail::call_op<at::Tensor(const at::Tensor&)>("pathways::pack_bits",
                                                        mask);
}

inline at::Tensor unpack_bits(const at::Tensor& words, int64_t size) {
  return detail::call_op<at::Tensor(const at::Tensor&, int64_t)>(
      "pathways::unpack_bits", words, size);
}

inline at::Tensor pairwise_intersection(const at::Tensor& a,
                                        const at::Tensor& b) {
  return detail::call_op<at::Tensor(const at::Tensor&, const at::Tensor&)>(
      "pathways::pairwise_intersection", a, b);
}

inline at::Tensor pairwise_iou(const at::Tensor& a, const at::Tensor& b) {
  return detail::call_op<at::Tensor(const at::Tensor&, const at::Tensor&)>(
      "pathways::pairwise_iou", a, b);
}

inline std::tuple<at::Tensor, at::Tensor> class_overlap(
    const at::Tensor& words, const at::Tensor& labels, int64_t num_classes) {
  return detail::call_op<std::tuple<at::Tensor, at::Tensor>(
      const at::Tensor&, const at::Tensor&, int64_t)>(
      "pathways::class_overlap", words, labels, num_classes);
}

inline at::Tensor class_frequency(const at::Tensor& words,
                                  const at::Tensor& labels, int64_t num_classes,
                                  int64_t size) {
  return detail::call_op<at::Tensor(const at::Tensor&, const at::Tensor&,
                                    int64_t, int64_t)>(
      "pathways::class_frequency", words, labels, num_classes, size);
}

}  // namespace pathways
