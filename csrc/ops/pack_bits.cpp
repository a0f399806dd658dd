#include <torch/csrc/stable/library.h>

// Conversion between 0/1 masks [N, D] and packed words [N, ceil(D / 64)].
STABLE_TORCH_LIBRARY_FRAGMENT(pathways, m)
{
  m.def("pack_bits(Tensor mask) -> Tensor");
  m.def("unpack_bits(Tensor words, int size) -> Tensor");
}
