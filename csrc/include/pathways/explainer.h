#pragma once

// Explaining images from C++, without Python:
//
//   const auto explainer = pathways::Explainer::load("explainer.pt");
//   const auto explanation = explainer.explain(images);  // float [N, C, H, W]
//   const auto iou = pathways::overlap(explanation.words, explanation.words);
//
// The file is written by `pathways export`. Both of its kinds are code:
// TorchScript (.pt) is interpreted, AOTInductor (.pt2) is loaded as a library.
// Load only files from a source you trust.

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace pathways {

// What went wrong, in one sentence.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// One gated activation of the target.
struct Site {
  std::string key;  // module path, '#', number of the call in that module
  std::string activation;
  std::vector<int64_t> shape;  // of one input's activation, channels first
  int64_t neurons = 0;
};

// What a file says of itself; read without running anything in it.
struct ExplainerInfo {
  std::string format;       // "torchscript" or "aoti"
  std::string fingerprint;  // of the target
  std::string pathways_version;
  std::string torch_version;
  bool units = false;  // a neuron is a unit, not a channel
  std::vector<std::string> classes;
  std::vector<Site> sites;
  int64_t neurons = 0;
  std::vector<int64_t> input_shape;   // of one model input
  std::vector<int64_t> image_shape;   // of one image; empty where unknown
  std::vector<int64_t> resize;        // by the file itself; empty: none
  std::vector<int64_t> class_counts;  // inputs behind each class pathway
  std::string json;                   // all of it
};

// Of N images.
struct Explanation {
  at::Tensor logits;        // [N, K], of the whole target
  at::Tensor gated_logits;  // [N, K], with only the pathway left
  at::Tensor importance;    // float [N, D], sites one after the other
  at::Tensor words;         // int64 [N, W]: the pathway, see mask()
};

namespace detail {
class Backend;
}

// A loaded file. Copies share it; its functions can be called from any number
// of threads at once. Images are float [N, C, H, W] as the preprocessing in the
// file takes them ([0, 1]), or model inputs where it holds none; they are moved
// to the explainer's device. Whatever fails is told by an Error.
class Explainer {
 public:
  // Raises where the file is absent, damaged, foreign or newer than this
  // library, where the device is absent, or where the op library is not there.
  static Explainer load(const std::string& path,
                        c10::Device device = c10::Device(c10::kCPU));

  const ExplainerInfo& info() const;
  c10::Device device() const;

  Explanation explain(const at::Tensor& images) const;

  // Logits [N, K] of the whole target and importance [N, D], without the gated
  // run: about the cost of one run of the target.
  std::pair<at::Tensor, at::Tensor> importance(const at::Tensor& images) const;

  // Gated logits [N, K] under the class pathways in the file; the generator is
  // not run. `classes` (int64 [N]): whose pathway each image gets; by default
  // that of the class the target predicts.
  at::Tensor transfer(
      const at::Tensor& images,
      const std::optional<at::Tensor>& classes = std::nullopt) const;

  // Gradient of a class's logit with respect to the model input with only the
  // pathway left, in the shape of the model input (arXiv:2103.16886). By
  // default of the predicted class, and under the generator's pathway.
  at::Tensor pathway_gradient(
      const at::Tensor& images,
      const std::optional<at::Tensor>& classes = std::nullopt,
      const std::optional<at::Tensor>& words = std::nullopt) const;

  // Where the pathway looks: Grad-CAM of the gated run at the deepest site that
  // has a map, [N, H, W] in [0, 1] (arXiv:1610.02391).
  at::Tensor grad_cam(
      const at::Tensor& images,
      const std::optional<at::Tensor>& classes = std::nullopt,
      const std::optional<at::Tensor>& words = std::nullopt) const;

  // Pathways as bool [N, D] of words [N, W].
  at::Tensor mask(const at::Tensor& words) const;

 private:
  explicit Explainer(std::shared_ptr<const detail::Backend> backend);

  std::shared_ptr<const detail::Backend> backend_;
};

// IoU of all pathways of `a` [N, W] with all of `b` [M, W]: float [N, M]; two
// empty pathways have 1.
at::Tensor overlap(const at::Tensor& a, const at::Tensor& b);

}  // namespace pathways
