#pragma once

// Shared by the gradients of the ops.

#include <ATen/core/LegacyTypeDispatch.h>
#include <c10/core/GradMode.h>
#include <pathways/ops.h>

namespace pathways {

using detail::MaybeTensor;

inline bool needs_gradient(const at::Tensor& tensor) {
  return c10::GradMode::is_enabled() && tensor.defined() &&
         tensor.requires_grad();
}

inline bool needs_gradient(const MaybeTensor& tensor) {
  return tensor.has_value() && needs_gradient(*tensor);
}

// The op itself, past autograd.
template <typename Signature, typename... Arguments>
auto call_below(const char* op, Arguments&&... arguments) {
  const at::AutoDispatchBelowADInplaceOrView below;
  return detail::call_op<Signature>(op, std::forward<Arguments>(arguments)...);
}

}  // namespace pathways
