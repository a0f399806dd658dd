// latency FILE IMAGES THREADS METHOD: runs a method of an explainer on images
// (torch::save) once for every line of standard input, and answers each with a
// line, so that a bench in Python can take turns with it.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <malloc.h>
#include <pathways/explainer.h>
#include <torch/serialize.h>

#include <cstdlib>
#include <fstream>
#include <iostream>
#include <iterator>
#include <string>
#include <vector>

int main(int, char** arguments) {
  // As in the process of the bench (machine.py): no contestant pays for pages
  // that another reuses.
  mallopt(M_MMAP_THRESHOLD, 32 << 20);
  mallopt(M_TRIM_THRESHOLD, (1U << 31) - 1);
  at::set_num_threads(std::atoi(arguments[3]));
  const auto explainer = pathways::Explainer::load(arguments[1]);
  std::ifstream file(arguments[2], std::ios::binary);
  const std::vector<char> bytes((std::istreambuf_iterator<char>(file)), {});
  const at::Tensor images = torch::pickle_load(bytes).toTensor();
  const bool whole = std::string(arguments[4]) == "explain";
  const at::NoGradGuard no_grad;
  for (std::string line; std::getline(std::cin, line);) {
    const at::Tensor logits = whole ? explainer.explain(images).logits
                                    : explainer.importance(images).first;
    std::cout << logits.sum().item<float>() << std::endl;
  }
}
