// AOTInductor files: one compiled model for each thing that an explainer does,
// and their common constants (docs/formats.md).

#include <ATen/ATen.h>
#include <caffe2/serialize/inline_container.h>
#include <sys/utsname.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <mutex>
#include <nlohmann/json.hpp>
#include <thread>

#include "backend.h"

namespace pathways::detail {
namespace {

using Json = nlohmann::json;
using Tensors = std::vector<at::Tensor>;
using Constants = std::unordered_map<std::string, at::Tensor>;
using torch::inductor::AOTIModelPackageLoader;

at::ScalarType dtype_of(const std::string& name) {
  static const std::map<std::string, at::ScalarType> known = {
      {"float64", at::kDouble},    {"F64", at::kDouble},
      {"float32", at::kFloat},     {"F32", at::kFloat},
      {"float16", at::kHalf},      {"F16", at::kHalf},
      {"bfloat16", at::kBFloat16}, {"BF16", at::kBFloat16},
      {"int64", at::kLong},        {"I64", at::kLong},
      {"int32", at::kInt},         {"I32", at::kInt},
      {"bool", at::kBool},         {"BOOL", at::kBool},
      {"uint8", at::kByte},        {"U8", at::kByte}};
  const auto found = known.find(name);
  if (found == known.end()) {
    throw Error("dtype " + name + " is not known");
  }
  return found->second;
}

// The tensors of a safetensors file, in memory of their own.
Constants read_constants(const char* data, size_t size) {
  uint64_t header_size = 0;
  const auto need = [&](bool condition) {
    if (!condition) {
      throw Error("its constants end too early");
    }
  };
  need(size >= sizeof(header_size));
  std::memcpy(&header_size, data, sizeof(header_size));
  need(header_size <= size - sizeof(header_size));
  const char* start = data + sizeof(header_size) + header_size;
  const size_t rest = size - sizeof(header_size) - header_size;
  Constants constants;
  const Json header = Json::parse(data + sizeof(header_size), start);
  for (const auto& [name, entry] : header.items()) {
    if (name == "__metadata__") {
      continue;
    }
    const auto begin = entry.at("data_offsets").at(0).get<uint64_t>();
    const auto end = entry.at("data_offsets").at(1).get<uint64_t>();
    need(begin <= end && end <= rest);
    at::Tensor tensor =
        at::empty(entry.at("shape").get<std::vector<int64_t>>(),
                  dtype_of(entry.at("dtype").get<std::string>()));
    need(tensor.nbytes() == end - begin);
    if (end > begin) {  // an empty tensor has no memory
      std::memcpy(tensor.mutable_data_ptr(), start + begin, end - begin);
    }
    constants.emplace(name, std::move(tensor));
  }
  return constants;
}

// What a model takes, or gives: a dimension of -1 is free.
struct Argument {
  std::string name;
  at::ScalarType dtype;
  std::vector<int64_t> shape;
};

Argument argument_of(const Json& json) {
  Argument argument{json.at("name"), dtype_of(json.at("dtype")), {}};
  for (const Json& side : json.at("shape")) {
    argument.shape.push_back(side.is_null() ? -1 : side.get<int64_t>());
  }
  return argument;
}

std::string shape_text(at::IntArrayRef shape) {
  std::string text;
  for (const int64_t side : shape) {
    text += (text.empty() ? "" : ", ") +
            (side < 0 ? std::string("*") : std::to_string(side));
  }
  return "[" + text + "]";
}

// A model that is loaded when it is first run. Compiled code checks nothing, so
// that everything is checked here.
class Model {
 public:
  Model(std::string path, std::string name, const Json& description,
        Constants* constants)
      : path_(std::move(path)), name_(std::move(name)), constants_(constants) {
    for (const Json& input : description.at("inputs")) {
      inputs_.push_back(argument_of(input));
    }
  }

  Tensors run(Tensors arguments) const {
    for (size_t i = 0; i < arguments.size(); ++i) {
      arguments[i] = checked(arguments[i], inputs_.at(i));
      if (arguments[i].size(0) != arguments[0].size(0)) {
        throw Error(inputs_[i].name + " must be of " +
                    std::to_string(arguments[0].size(0)) + " images, got " +
                    std::to_string(arguments[i].size(0)));
      }
    }
    std::call_once(loaded_, [&] { load(); });
    return loader_->run(arguments);
  }

 private:
  static at::Tensor checked(const at::Tensor& tensor, const Argument& wanted) {
    bool fits = static_cast<size_t>(tensor.dim()) == wanted.shape.size();
    for (size_t i = 0; fits && i < wanted.shape.size(); ++i) {
      const int64_t side = tensor.size(static_cast<int64_t>(i));
      // A batch may be empty, an image may not.
      fits = wanted.shape[i] < 0 ? side > 0 || i == 0 : side == wanted.shape[i];
    }
    if (!fits) {
      throw Error("explainer: " + wanted.name + " must be of shape " +
                  shape_text(wanted.shape) + ", got " +
                  shape_text(tensor.sizes()));
    }
    if (tensor.scalar_type() != wanted.dtype) {
      throw Error("explainer: " + wanted.name + " must be " +
                  c10::toString(wanted.dtype) + ", got " +
                  c10::toString(tensor.scalar_type()));
    }
    return tensor.contiguous();
  }

  void load() const {
    // As many calls at once as there are processors; they share the constants.
    const size_t runners = std::clamp<size_t>(
        std::thread::hardware_concurrency(), 1, kMostRunners);
    loader_ =
        std::make_unique<AOTIModelPackageLoader>(path_, name_, false, runners);
    // Views that own nothing: torch never frees the handles that it makes of
    // constants it is to share, and whatever they own would stay with them.
    Constants needed;
    for (const std::string& name : loader_->get_constant_fqns()) {
      const at::Tensor& tensor = constants_->at(name);
      needed.emplace(name,
                     at::from_blob(tensor.mutable_data_ptr(), tensor.sizes(),
                                   tensor.strides(), tensor.options()));
    }
    loader_->load_constants(needed, false, true, true);
  }

  static constexpr size_t kMostRunners = 8;
  std::string path_;
  std::string name_;
  Constants* constants_;
  std::vector<Argument> inputs_;
  mutable std::once_flag loaded_;
  mutable std::unique_ptr<AOTIModelPackageLoader> loader_;
};

class Compiled final : public Backend {
 public:
  Compiled(const std::string& path, ExplainerInfo info, Constants constants)
      : Backend(std::move(info), c10::Device(c10::kCPU)),
        constants_(std::move(constants)) {
    const Json description = Json::parse(this->info().json);
    for (const auto& [name, model] : description.at("models").items()) {
      models_.try_emplace(name, path, name, model, &constants_);
    }
  }

  Explanation explain(const at::Tensor& images) const override {
    const at::Tensor x = inputs(images);
    const Tensors found = model("importance").run({x});
    const Tensors gated = model("gated").run({x, found.at(2)});
    return {found[0], gated.at(0), found[1], found[2]};
  }

  std::pair<at::Tensor, at::Tensor> importance(
      const at::Tensor& images) const override {
    const Tensors found = model("importance").run({inputs(images)});
    return {found.at(0), found.at(1)};
  }

  at::Tensor transfer(const at::Tensor& images,
                      const std::optional<at::Tensor>& classes) const override {
    const at::Tensor x = inputs(images);
    const at::Tensor chosen =
        classes.has_value() ? checked(*classes, x)
                            : model("importance").run({x}).at(0).argmax(1);
    const at::Tensor counts = constants_.at("class_counts");
    if (counts.size(0) == 0) {
      throw Error(
          "transfer: this explainer was exported without class pathways");
    }
    const at::Tensor empty = chosen.index({counts.index({chosen}) == 0});
    if (empty.numel() > 0) {
      throw Error("transfer: class " +
                  std::to_string(empty[0].item<int64_t>()) +
                  " is empty, no input was predicted as it");
    }
    const at::Tensor words = constants_.at("class_words").index({chosen});
    return model("gated").run({x, words}).at(0);
  }

  at::Tensor pathway_gradient(
      const at::Tensor& images, const std::optional<at::Tensor>& classes,
      const std::optional<at::Tensor>& words) const override {
    return about("pathway_gradient", images, classes, words);
  }

  at::Tensor grad_cam(const at::Tensor& images,
                      const std::optional<at::Tensor>& classes,
                      const std::optional<at::Tensor>& words) const override {
    if (models_.count("grad_cam") == 0) {
      throw Error(
          "grad_cam: the target must have a site with a 2-D map, got none");
    }
    return about("grad_cam", images, classes, words);
  }

 private:
  const Model& model(const std::string& name) const {
    const auto found = models_.find(name);
    if (found == models_.end()) {
      throw Error("the file holds no model " + name);
    }
    return found->second;
  }

  at::Tensor inputs(const at::Tensor& images) const {
    return models_.count("preprocess") == 0
               ? images
               : model("preprocess").run({images}).at(0);
  }

  at::Tensor checked(const at::Tensor& classes, const at::Tensor& x) const {
    if (classes.dim() != 1 || classes.size(0) != x.size(0) ||
        classes.scalar_type() != at::kLong) {
      throw Error("classes must be int64 of shape [" +
                  std::to_string(x.size(0)) + "], got " +
                  c10::toString(classes.scalar_type()) + " of shape " +
                  shape_text(classes.sizes()));
    }
    const auto count = static_cast<int64_t>(info().classes.size());
    const at::Tensor wrong =
        classes.index({classes.lt(0).logical_or(classes.ge(count))});
    if (wrong.numel() > 0) {
      throw Error("classes must be in [0, " + std::to_string(count) +
                  "), got " + std::to_string(wrong[0].item<int64_t>()));
    }
    return classes.cpu();
  }

  at::Tensor about(const char* name, const at::Tensor& images,
                   const std::optional<at::Tensor>& classes,
                   const std::optional<at::Tensor>& words) const {
    const at::Tensor x = inputs(images);
    Tensors defaults;
    if (!classes.has_value() || !words.has_value()) {
      defaults = model("importance").run({x});
    }
    const at::Tensor chosen =
        classes.has_value() ? checked(*classes, x) : defaults.at(0).argmax(1);
    at::Tensor pathway = words.has_value() ? words->cpu() : defaults.at(2);
    if (pathway.dim() == 2 && pathway.size(0) == 1) {
      pathway = pathway.expand({x.size(0), -1});
    }
    return model(name).run({x, chosen, pathway}).at(0);
  }

  Constants constants_;
  std::map<std::string, Model> models_;
};

// Raises where the file is for another machine: its code would not run here.
void check_machine(const std::string& path, const Json& description) {
  utsname here{};
  uname(&here);
  const std::string machine = here.machine;
  if (description.at("platform") != "linux" ||
      description.at("machine") != machine) {
    throw Error(path + " was compiled for " +
                description.at("platform").get<std::string>() + " on " +
                description.at("machine").get<std::string>() +
                ", this is linux on " + machine + "; export it anew");
  }
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (description.at("cpu_capability") == "avx2" &&
      !(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))) {
    throw Error(path + " needs a processor with AVX2");
  }
#endif
}

}  // namespace

std::shared_ptr<const Backend> load_compiled(const std::string& path,
                                             ExplainerInfo info,
                                             c10::Device device) {
  if (!device.is_cpu()) {
    throw Error(path + " was compiled for cpu, got device " + device.str());
  }
  try {
    const Json description = Json::parse(info.json);
    check_machine(path, description);
    caffe2::serialize::PyTorchStreamReader reader(path);
    const auto [data, size] = reader.getRecord(
        "extra/" + description.at("constants").get<std::string>());
    Constants constants =
        read_constants(static_cast<const char*>(data.get()), size);
    return std::make_shared<Compiled>(path, std::move(info),
                                      std::move(constants));
  } catch (const Error&) {
    throw;
  } catch (const std::exception& error) {
    throw Error(path + " is damaged: " + sentence_of(error));
  }
}

}  // namespace pathways::detail
