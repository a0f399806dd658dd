#include <ATen/ATen.h>
#include <torch/csrc/jit/runtime/graph_executor.h>
#include <torch/script.h>

#include "backend.h"

namespace pathways::detail {
namespace {

class TorchScript final : public Backend {
 public:
  TorchScript(ExplainerInfo info, c10::Device device, torch::jit::Module module)
      : Backend(std::move(info), device), module_(std::move(module)) {}

  Explanation explain(const at::Tensor& images) const override {
    const auto parts = run("forward", {images}).toTuple();
    const auto part = [&](size_t i) {
      return parts->elements().at(i).toTensor();
    };
    return {part(0), part(1), part(2), part(3)};
  }

  std::pair<at::Tensor, at::Tensor> importance(
      const at::Tensor& images) const override {
    const auto parts = run("importance", {images}).toTuple();
    return {parts->elements().at(0).toTensor(),
            parts->elements().at(1).toTensor()};
  }

  at::Tensor transfer(const at::Tensor& images,
                      const std::optional<at::Tensor>& classes) const override {
    return run("transfer", {images, classes}).toTensor();
  }

  at::Tensor pathway_gradient(
      const at::Tensor& images, const std::optional<at::Tensor>& classes,
      const std::optional<at::Tensor>& words) const override {
    return run("pathway_gradient", {images, classes, words}).toTensor();
  }

  at::Tensor grad_cam(const at::Tensor& images,
                      const std::optional<at::Tensor>& classes,
                      const std::optional<at::Tensor>& words) const override {
    return run("grad_cam", {images, classes, words}).toTensor();
  }

 private:
  torch::jit::IValue run(const char* method,
                         std::vector<torch::jit::IValue> arguments) const {
    // The optimiser compiles for seconds in the first calls and gains nothing:
    // the time is spent inside convolutions.
    const torch::jit::GraphOptimizerEnabledGuard plain(false);
    try {
      return module_.get_method(method)(std::move(arguments));
    } catch (const std::exception& error) {
      throw Error(sentence_of(error));
    }
  }

  torch::jit::Module module_;
};

}  // namespace

std::shared_ptr<const Backend> load_torchscript(const std::string& path,
                                                ExplainerInfo info,
                                                c10::Device device) {
  try {
    torch::jit::Module module = torch::jit::load(path, device);
    module.eval();
    return std::make_shared<TorchScript>(std::move(info), device,
                                         std::move(module));
  } catch (const std::exception& error) {
    throw Error(path + " was written with torch " + info.torch_version +
                " and does not load: " + sentence_of(error));
  }
}

}  // namespace pathways::detail
