// explain FILE INPUTS OUTPUTS: every function of the C++ explainer on the
// tensor in INPUTS, the results as a list of tensors in OUTPUTS (both
// torch::save).

#include <ATen/ATen.h>
#include <pathways/explainer.h>
#include <torch/serialize.h>

#include <cstdio>
#include <fstream>
#include <iterator>
#include <vector>

namespace {

at::Tensor read(const char* path) {
  std::ifstream file(path, std::ios::binary);
  const std::vector<char> bytes((std::istreambuf_iterator<char>(file)), {});
  return torch::pickle_load(bytes).toTensor();
}

}  // namespace

int main(int, char** arguments) {
  try {
    const auto explainer = pathways::Explainer::load(arguments[1]);
    const at::Tensor images = read(arguments[2]);
    const pathways::Explanation e = explainer.explain(images);
    const at::Tensor classes = at::full({images.size(0)}, 1, at::kLong);
    const auto [logits, importance] = explainer.importance(images);
    if (!at::equal(logits, e.logits) || !at::equal(importance, e.importance)) {
      throw pathways::Error("importance() and explain() differ");
    }
    // A tuple: torch.load takes one without being told to trust it.
    std::vector<c10::IValue> results = {
        e.logits,
        e.gated_logits,
        e.importance,
        e.words,
        explainer.mask(e.words),
        pathways::overlap(e.words, e.words),
        explainer.pathway_gradient(images),
        explainer.pathway_gradient(images, classes, e.words.narrow(0, 0, 1)),
        explainer.grad_cam(images),
        explainer.grad_cam(images, classes, e.words.narrow(0, 0, 1)),
    };
    if (!explainer.info().class_counts.empty()) {
      results.push_back(explainer.transfer(images));
      results.push_back(explainer.transfer(images, classes));
    }
    const std::vector<char> bytes =
        torch::pickle_save(c10::ivalue::Tuple::create(std::move(results)));
    std::ofstream(arguments[3], std::ios::binary)
        .write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    return 0;
  } catch (const pathways::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
