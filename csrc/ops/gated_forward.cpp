#include "schema.h"

// Gating of one site: gate * act(x + bias) + (1 - gate) * baseline. Gradients
// that are not needed come back from the backward op as tensors of shape [0].
PATHWAYS_SCHEMAS({
    "gated_forward(Tensor x, Tensor gate, *, Tensor? bias=None, "
    "str activation=\"none\", Tensor? baseline=None) -> Tensor",

    "gated_forward_(Tensor(a!) x, Tensor gate, *, Tensor? bias=None, "
    "str activation=\"none\", Tensor? baseline=None) -> ()",

    "_gated_backward(Tensor grad, Tensor x, Tensor gate, *, "
    "Tensor? bias=None, str activation=\"none\", Tensor? baseline=None, "
    "bool need_x=True, bool need_gate=True, bool need_bias=False) "
    "-> (Tensor grad_x, Tensor grad_gate, Tensor grad_bias)",
});
