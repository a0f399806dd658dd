// The ops and their gradients, called from C++ as a user would.

#include <ATen/ATen.h>
#include <pathways/ops.h>

#include <cstdio>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

void check(bool condition, const std::string& what) {
  if (!condition) {
    throw std::runtime_error(what);
  }
  std::printf("ok %s\n", what.c_str());
}

at::Tensor random(at::IntArrayRef shape) {
  return at::randn(shape, at::kDouble);
}

// Whether the gradients of sum(weights * function(inputs)) are those that
// central differences give.
void check_gradients(
    const std::string& what,
    const std::function<at::Tensor(const std::vector<at::Tensor>&)>& function,
    std::vector<at::Tensor> inputs) {
  for (at::Tensor& input : inputs) {
    input.requires_grad_(true);
  }
  const at::Tensor output = function(inputs);
  const at::Tensor weights = random(output.sizes());
  (output * weights).sum().backward();
  constexpr double kStep = 1e-6;
  double worst = 0;
  const at::NoGradGuard no_grad;
  for (const at::Tensor& input : inputs) {
    const at::Tensor flat = input.detach().view({-1});
    for (int64_t i = 0; i < flat.numel(); ++i) {
      const double before = flat[i].item<double>();
      const auto value_at = [&](double x) {
        flat[i] = x;
        return (function(inputs) * weights).sum().item<double>();
      };
      const double slope =
          (value_at(before + kStep) - value_at(before - kStep)) / (2 * kStep);
      flat[i] = before;
      const double found = input.grad().view({-1})[i].item<double>();
      worst = std::max(worst, std::abs(found - slope));
    }
  }
  check(worst < 1e-6, what + " by central differences");
}

bool refuses(const std::function<void()>& call, const std::string& words) {
  try {
    call();
  } catch (const std::exception& error) {
    return std::string(error.what()).find(words) != std::string::npos;
  }
  return false;
}

void run() {
  at::manual_seed(0);
  const at::Tensor x = random({2, 3, 4, 5});
  const at::Tensor gate = at::rand({2, 3}, at::kDouble);
  const at::Tensor bias = random({3});
  const at::Tensor baseline = random({3});

  const at::Tensor wide = gate.view({2, 3, 1, 1});
  const at::Tensor expected = wide * (x + bias.view({1, 3, 1, 1})).relu() +
                              (1 - wide) * baseline.view({1, 3, 1, 1});
  check(at::allclose(pathways::gated_forward(x, gate, bias, "relu", baseline),
                     expected),
        "gated_forward");
  at::Tensor own = x.clone();
  pathways::gated_forward_(own, gate, bias, "relu", baseline);
  check(at::allclose(own, expected), "gated_forward_");

  for (const char* activation : {"none", "relu", "relu6", "silu", "gelu"}) {
    check_gradients(std::string("gradients of gated_forward, ") + activation,
                    [&](const std::vector<at::Tensor>& inputs) {
                      return pathways::gated_forward(inputs[0], inputs[1],
                                                     inputs[2], activation,
                                                     baseline);
                    },
                    {x.clone(), gate.clone(), bias.clone()});
  }
  check_gradients("gradients of unit gates",
                  [&](const std::vector<at::Tensor>& inputs) {
                    return pathways::gated_forward(inputs[0], inputs[1]);
                  },
                  {x.clone(), at::rand_like(x)});

  // A step has no slope: the gradient is the published closed form.
  at::Tensor importance = at::tensor({0.2, 0.5, 0.8}, at::kDouble);
  importance.requires_grad_(true);
  const at::Tensor mask = pathways::binarize(importance);
  check(at::equal(mask.detach(), at::tensor({0.0, 0.0, 1.0}, at::kDouble)),
        "binarize");
  mask.sum().backward();
  check(
      at::allclose(importance.grad(),
                   at::tensor({0.4152, 0.5966, 0.4152}, at::kDouble), 0, 1e-4),
      "gradient of binarize");

  const at::Tensor needs = x.clone().requires_grad_(true);
  check(refuses(
            [&] {
              at::Tensor written = needs * 1;
              pathways::gated_forward_(written, gate);
            },
            "arguments must not require a gradient"),
        "gated_forward_ refuses gradients");
  check(refuses([&] { pathways::gated_forward(x, at::ones({7}, at::kDouble)); },
                "gate must have shape [N, C], [1, C], [C] or the shape of x"),
        "a wrong gate is told in one sentence");

  const at::Tensor pooled = pathways::adaptive_avg_max_pool2d(x, 2, 3);
  check(at::allclose(pooled,
                     at::cat({at::adaptive_avg_pool2d(x, {2, 3}),
                              std::get<0>(at::adaptive_max_pool2d(x, {2, 3}))},
                             1)),
        "adaptive_avg_max_pool2d");
  check_gradients("gradients of adaptive_avg_max_pool2d",
                  [&](const std::vector<at::Tensor>& inputs) {
                    return pathways::adaptive_avg_max_pool2d(inputs[0], 2, 3);
                  },
                  {x.clone()});

  const at::Tensor bits = at::rand({5, 130}) < 0.5;
  const at::Tensor words = pathways::pack_bits(bits);
  check(at::equal(pathways::unpack_bits(words, 130), bits), "pack_bits");
  const at::Tensor numbers = bits.to(at::kFloat);
  const at::Tensor both = numbers.matmul(numbers.t());
  check(at::equal(pathways::pairwise_intersection(words, words),
                  both.to(at::kInt)),
        "pairwise_intersection");
  const at::Tensor sizes = numbers.sum(1);
  check(at::allclose(pathways::pairwise_iou(words, words),
                     both / (sizes.unsqueeze(0) + sizes.unsqueeze(1) - both)),
        "pairwise_iou");
  const at::Tensor labels = at::zeros({5}, at::kLong);
  check(at::equal(pathways::class_frequency(words, labels, 1, 130)[0],
                  bits.sum(0)),
        "class_frequency");
  const auto [sums, pairs] = pathways::class_overlap(words, labels, 1);
  check(pairs.item<int64_t>() == 10 && sums.item<double>() > 0,
        "class_overlap");
}

}  // namespace

int main() {
  try {
    run();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "failed: %s\n", error.what());
    return 1;
  }
  return 0;
}
