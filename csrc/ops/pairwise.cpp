#include <torch/csrc/stable/library.h>

// Overlap of every row of one set of packed pathways with every row of another.
STABLE_TORCH_LIBRARY_FRAGMENT(pathways, m)
{
  m.def("pairwise_intersection(Tensor a, Tensor b) -> Tensor");
  m.def("pairwise_iou(Tensor a, Tensor b) -> Tensor");
}
