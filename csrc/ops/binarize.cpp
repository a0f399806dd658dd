#include <torch/csrc/stable/library.h>

// Distance-aware quantization to one bit.
STABLE_TORCH_LIBRARY_FRAGMENT(pathways, m)
{
  m.def(
      "binarize(Tensor importance, float sigma=1.0, float gamma=2.0) -> "
      "Tensor");
  m.def(
      "_binarize_backward(Tensor grad, Tensor importance, float sigma=1.0, "
      "float gamma=2.0) "
      "-> Tensor");
}
