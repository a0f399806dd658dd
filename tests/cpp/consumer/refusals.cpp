// refusals FILE: what the C++ explainer says to wrong arguments, a line each.

#include <ATen/ATen.h>
#include <pathways/explainer.h>

#include <cstdio>
#include <functional>
#include <vector>

int main(int, char** arguments) {
  const auto explainer = pathways::Explainer::load(arguments[1]);
  std::vector<int64_t> shape = explainer.info().input_shape;
  shape.insert(shape.begin(), 2);
  const at::Tensor images = at::rand(shape);
  const int64_t words = explainer.explain(images).words.size(1);
  std::vector<int64_t> flat = shape;
  flat.back() = 0;
  const std::vector<std::function<void()>> calls = {
      [&] { explainer.explain(images.to(at::kDouble)); },
      [&] { explainer.explain(at::rand(flat)); },
      [&] { explainer.mask(at::zeros({2, words + 1}, at::kLong)); },
      [&] { explainer.mask(at::zeros({words}, at::kLong)); },
  };
  for (const auto& call : calls) {
    try {
      call();
      std::puts("nothing");
    } catch (const pathways::Error& error) {
      std::puts(error.what());
    }
  }
}
