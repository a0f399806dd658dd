#include <torch/csrc/stable/library.h>

// How often each neuron is in the pathways of each class.
STABLE_TORCH_LIBRARY_FRAGMENT(pathways, m)
{
  m.def(
      "class_frequency(Tensor words, Tensor labels, int num_classes, int size) "
      "-> Tensor");
}
