#pragma once

// What the two kinds of file have in common.

#include <string>

#include <pathways/explainer.h>

namespace pathways::detail {

class Backend {
 public:
  Backend(ExplainerInfo info, c10::Device device)
      : info_(std::move(info)), device_(device) {}
  virtual ~Backend() = default;
  Backend(const Backend&) = delete;
  Backend& operator=(const Backend&) = delete;

  const ExplainerInfo& info() const { return info_; }
  c10::Device device() const { return device_; }

  virtual Explanation explain(const at::Tensor& images) const = 0;
  virtual std::pair<at::Tensor, at::Tensor> importance(
      const at::Tensor& images) const = 0;
  virtual at::Tensor transfer(
      const at::Tensor& images,
      const std::optional<at::Tensor>& classes) const = 0;
  virtual at::Tensor pathway_gradient(
      const at::Tensor& images, const std::optional<at::Tensor>& classes,
      const std::optional<at::Tensor>& words) const = 0;
  virtual at::Tensor grad_cam(const at::Tensor& images,
                              const std::optional<at::Tensor>& classes,
                              const std::optional<at::Tensor>& words) const = 0;

 private:
  ExplainerInfo info_;
  c10::Device device_;
};

// Raises where an archive is not whole.
void check_archive(const std::string& path);

// The description in a file of either kind.
ExplainerInfo read_info(const std::string& path);

std::shared_ptr<const Backend> load_torchscript(const std::string& path,
                                                ExplainerInfo info,
                                                c10::Device device);
std::shared_ptr<const Backend> load_compiled(const std::string& path,
                                             ExplainerInfo info,
                                             c10::Device device);

// The sentence in an exception of torch, without its traces.
std::string sentence_of(const std::exception& error);

}  // namespace pathways::detail
