#include <pathways/explainer.h>

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <pathways/ops.h>
#include "backend.h"

namespace pathways {
namespace {

void check_ops() {
  const auto found =
      c10::Dispatcher::singleton().findSchema({"pathways::gated_forward", ""});
  if (!found.has_value()) {
    throw Error(
        "the op library libpathways is not loaded: link Pathways::pathways, "
        "or dlopen the library before");
  }
}

void check_device(c10::Device device) {
  if (!device.is_cpu() && !device.is_cuda()) {
    throw Error("device must be cpu or cuda, got " + device.str());
  }
  if (!device.is_cuda()) {
    return;
  }
  if (!at::hasCUDA()) {
    throw Error("device " + device.str() +
                " was asked for, but this libtorch has no CUDA or no GPU");
  }
  const int64_t devices = at::detail::getCUDAHooks().deviceCount();
  if (device.has_index() && device.index() >= devices) {
    throw Error("device " + device.str() + " was asked for, but there are " +
                std::to_string(devices) + " GPUs");
  }
}

// What torch itself says about an argument, as an Error too.
template <typename Function>
auto told(const Function& function) {
  try {
    return function();
  } catch (const Error&) {
    throw;
  } catch (const std::exception& error) {
    throw Error(detail::sentence_of(error));
  }
}

}  // namespace

Explainer::Explainer(std::shared_ptr<const detail::Backend> backend)
    : backend_(std::move(backend)) {}

Explainer Explainer::load(const std::string& path, c10::Device device) {
  check_ops();
  ExplainerInfo info = detail::read_info(path);
  check_device(device);
  if (info.format == "torchscript") {
    return Explainer(detail::load_torchscript(path, std::move(info), device));
  }
  if (info.format == "aoti") {
    return Explainer(detail::load_compiled(path, std::move(info), device));
  }
  throw Error(path + " must be of format torchscript or aoti, got " +
              info.format);
}

const ExplainerInfo& Explainer::info() const {
  return backend_->info();
}

c10::Device Explainer::device() const {
  return backend_->device();
}

Explanation Explainer::explain(const at::Tensor& images) const {
  return told([&] { return backend_->explain(images.to(device())); });
}

std::pair<at::Tensor, at::Tensor> Explainer::importance(
    const at::Tensor& images) const {
  return told([&] { return backend_->importance(images.to(device())); });
}

at::Tensor Explainer::transfer(const at::Tensor& images,
                               const std::optional<at::Tensor>& classes) const {
  if (info().class_counts.empty()) {
    throw Error("transfer: this explainer was exported without class pathways");
  }
  return told([&] { return backend_->transfer(images.to(device()), classes); });
}

at::Tensor Explainer::pathway_gradient(
    const at::Tensor& images, const std::optional<at::Tensor>& classes,
    const std::optional<at::Tensor>& words) const {
  return told([&] {
    return backend_->pathway_gradient(images.to(device()), classes, words);
  });
}

at::Tensor Explainer::grad_cam(const at::Tensor& images,
                               const std::optional<at::Tensor>& classes,
                               const std::optional<at::Tensor>& words) const {
  return told(
      [&] { return backend_->grad_cam(images.to(device()), classes, words); });
}

at::Tensor Explainer::mask(const at::Tensor& words) const {
  return told([&] {
    int64_t width = 0;
    for (const Site& site : info().sites) {
      width += (site.neurons + 63) / 64;
    }
    if (words.dim() != 2 || words.size(1) != width) {
      throw Error("mask: words must be of shape [*, " + std::to_string(width) +
                  "], got " + c10::str(words.sizes()));
    }
    std::vector<at::Tensor> parts;
    int64_t first = 0;
    for (const Site& site : info().sites) {
      const int64_t count = (site.neurons + 63) / 64;
      parts.push_back(unpack_bits(words.narrow(1, first, count), site.neurons));
      first += count;
    }
    return at::cat(parts, 1);
  });
}

at::Tensor overlap(const at::Tensor& a, const at::Tensor& b) {
  return told([&] { return pairwise_iou(a, b); });
}

}  // namespace pathways
