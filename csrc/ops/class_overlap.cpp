#include <torch/csrc/stable/library.h>

// Sums and counts of the IoU of pairs of pathways by the classes of the two.
STABLE_TORCH_LIBRARY_FRAGMENT(pathways, m)
{
  m.def(
      "class_overlap(Tensor words, Tensor labels, int num_classes) -> (Tensor "
      "sums, Tensor pairs)");
}
