#include <torch/csrc/stable/library.h>

// Gating of one site: gate * act(x + bias) + (1 - gate) * baseline.
STABLE_TORCH_LIBRARY_FRAGMENT(pathways, m)
{
  m.def(
      "gated_forward(Tensor x, Tensor gate, *, Tensor? bias=None, str "
      "activation=\"none\", "
      "Tensor? baseline=None) -> Tensor");
  m.def(
      "gated_forward_(Tensor(a!) x, Tensor gate, *, Tensor? bias=None, str "
      "activation=\"none\", "
      "Tensor? baseline=None) -> ()");
  // Gradients that are not needed come back as empty tensors of shape [0].
  m.def(
      "_gated_backward(Tensor grad, Tensor x, Tensor gate, *, Tensor? "
      "bias=None, "
      "str activation=\"none\", Tensor? baseline=None, bool need_x=True, bool "
      "need_gate=True, "
      "bool need_bias=False) -> (Tensor grad_x, Tensor grad_gate, Tensor "
      "grad_bias)");
}
