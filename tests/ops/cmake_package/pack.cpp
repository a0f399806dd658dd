// Calls an op by name; no symbol of the op library is named.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <array>
#include <cstdio>
#include <vector>

int main() {
  using torch::stable::Tensor;
  const std::vector<int64_t> shape{1, 3};
  const Tensor ones = torch::stable::full(shape, 1.0);
  std::array<StableIValue, 1> stack{torch::stable::detail::from(ones)};
  if (torch_call_dispatcher("pathways::pack_bits", "", stack.data(),
                            TORCH_ABI_VERSION) != TORCH_SUCCESS) {
    return 1;
  }
  const auto words = torch::stable::detail::to<Tensor>(stack[0]);
  std::printf("%lld\n", static_cast<long long>(
                            *static_cast<const int64_t*>(words.data_ptr())));
  return 0;
}
