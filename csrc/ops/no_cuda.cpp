// CUDA entries of a library that was built without CUDA: they say so, instead
// of torch's list of backends.

#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>

#include "stable.h"

namespace pathways {
namespace {

// A kernel of any signature that refuses. The name of the op is a template
// argument, because a boxed kernel has no state.
template <size_t kSize>
struct OpName {
  constexpr OpName(const char (&text)[kSize]) {
    std::copy(text, text + kSize, value);
  }
  char value[kSize];
};

template <OpName kName, typename Signature>
struct Refusal;

template <OpName kName, typename Result, typename... Arguments>
struct Refusal<kName, Result(Arguments...)> {
  static Result call(Arguments...) {
    detail::fail(kName.value,
                 ": pathways was built without CUDA; rebuild with "
                 "PATHWAYS_CUDA=on or move the tensors to "
                 "the CPU");
  }
};

template <OpName kName, typename Signature>
void refuse(torch::stable::detail::StableLibrary& m) {
  m.impl(kName.value, TORCH_BOX((&Refusal<kName, Signature>::call)));
}

using Vector = const std::optional<Tensor>&;

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pathways, CUDA, m)
{
  refuse<"gated_forward",
         Tensor(const Tensor&, const Tensor&, Vector, const Text&, Vector)>(m);
  refuse<"gated_forward_",
         void(Tensor, const Tensor&, Vector, const Text&, Vector)>(m);
  refuse<"_gated_backward", std::tuple<Tensor, Tensor, Tensor>(
                                const Tensor&, const Tensor&, const Tensor&,
                                Vector, const Text&, Vector, bool, bool, bool)>(
      m);
  refuse<"binarize", Tensor(const Tensor&, double, double)>(m);
  refuse<"_binarize_backward",
         Tensor(const Tensor&, const Tensor&, double, double)>(m);
  refuse<"adaptive_avg_max_pool2d", Tensor(const Tensor&, int64_t, int64_t)>(m);
  refuse<"pack_bits", Tensor(const Tensor&)>(m);
  refuse<"unpack_bits", Tensor(const Tensor&, int64_t)>(m);
  refuse<"pairwise_intersection", Tensor(const Tensor&, const Tensor&)>(m);
  refuse<"pairwise_iou", Tensor(const Tensor&, const Tensor&)>(m);
  refuse<"class_overlap",
         std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, int64_t)>(m);
  refuse<"class_frequency",
         Tensor(const Tensor&, const Tensor&, int64_t, int64_t)>(m);
}

}  // namespace pathways
