#include <ATen/ATen.h>
#include <caffe2/serialize/inline_container.h>

#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <numeric>

#include "backend.h"

namespace pathways::detail {
namespace {

using Json = nlohmann::json;

constexpr int64_t kFormatVersion = 1;
constexpr const char* kRecord = "extra/pathways.json";

template <typename T>
T value_or(const Json& json, const char* key, T otherwise) {
  const auto found = json.find(key);
  return found == json.end() || found->is_null() ? otherwise : found->get<T>();
}

// Sizes of a tensor as the description has them. What is not positive, or more
// than any memory holds, would be believed by everything that follows.
std::vector<int64_t> shape_of(const Json& json) {
  auto shape = json.get<std::vector<int64_t>>();
  double count = 1;
  for (const int64_t side : shape) {
    count *= static_cast<double>(side);
    if (side < 1 || count > 1e12) {
      throw Error("its description has the shape " + json.dump());
    }
  }
  return shape;
}

Site site_of(const Json& entry, bool units) {
  Site site;
  site.key = entry.at("name").get<std::string>() + "#" +
             std::to_string(entry.at("call").get<int64_t>());
  site.activation = entry.at("activation");
  site.shape = shape_of(entry.at("shape"));
  if (site.shape.empty()) {
    throw Error("its description has a site without channels");
  }
  const auto last = units ? site.shape.end() : site.shape.begin() + 1;
  site.neurons = std::accumulate(site.shape.begin(), last, int64_t{1},
                                 std::multiplies<>());
  return site;
}

ExplainerInfo parse(const std::string& text) {
  const Json json = Json::parse(text);
  ExplainerInfo info;
  info.json = text;
  info.format = value_or<std::string>(json, "format", "torchscript");
  info.fingerprint = json.at("fingerprint");
  info.pathways_version = json.at("pathways");
  info.torch_version = json.at("torch");
  info.units = json.at("granularity") == "unit";
  info.classes = json.at("classes").get<std::vector<std::string>>();
  for (const Json& entry : json.at("sites")) {
    info.sites.push_back(site_of(entry, info.units));
    info.neurons += info.sites.back().neurons;
  }
  if (info.classes.empty() || info.sites.empty()) {
    throw Error("its description has no classes or no sites");
  }
  info.input_shape = shape_of(json.at("input_shape"));
  info.image_shape =
      shape_of(value_or<Json>(json, "image_shape", Json::array()));
  const Json preprocessing = value_or<Json>(json, "preprocessing", {});
  if (preprocessing.is_object()) {
    info.resize = value_or<std::vector<int64_t>>(preprocessing, "size", {});
  }
  const Json classes = value_or<Json>(json, "class_pathways", {});
  if (classes.is_object()) {
    info.class_counts = classes.at("counts").get<std::vector<int64_t>>();
  }
  return info;
}

std::string read_text(const std::string& path) {
  try {
    caffe2::serialize::PyTorchStreamReader reader(path);
    if (reader.hasRecord(kRecord)) {
      const auto [data, size] = reader.getRecord(kRecord);
      return {static_cast<const char*>(data.get()), size};
    }
  } catch (const std::exception& error) {
    throw Error(path + " is damaged or not an explainer (" +
                sentence_of(error) + ")");
  }
  throw Error(path +
              " must be an explainer, got an archive that pathways did not "
              "write");
}

}  // namespace

ExplainerInfo read_info(const std::string& path) {
  std::error_code none;
  if (!std::filesystem::exists(path, none)) {
    throw Error("there is no explainer " + path);
  }
  if (!std::filesystem::is_regular_file(path, none)) {
    throw Error(path + " must be an explainer, got something that is no file");
  }
  check_archive(path);
  const std::string text = read_text(path);
  try {
    const Json json = Json::parse(text);
    if (value_or<std::string>(json, "kind", "") != "explainer") {
      throw Error(path +
                  " must be an explainer, got an archive of another "
                  "kind");
    }
    const auto version = json.at("format_version").get<int64_t>();
    if (version > kFormatVersion) {
      throw Error(path + " must be in format version " +
                  std::to_string(kFormatVersion) + " or older, got " +
                  std::to_string(version) + "; upgrade pathways to read it");
    }
    try {
      return parse(text);
    } catch (const Error& error) {
      throw Error(path + " is damaged: " + error.what());
    }
  } catch (const Json::exception& error) {
    throw Error(path + " is damaged: its description cannot be read (" +
                error.what() + ")");
  }
}

std::string sentence_of(const std::exception& error) {
  const auto* torch_error = dynamic_cast<const c10::Error*>(&error);
  std::string text = torch_error == nullptr
                         ? error.what()
                         : torch_error->what_without_backtrace();
  // A check of the module itself, or of an operation in it: the sentence stands
  // behind the trace of the interpreter.
  for (const std::string mark : {"builtins.ValueError: ", "\nRuntimeError: "}) {
    const size_t own = text.rfind(mark);
    if (own != std::string::npos) {
      text = text.substr(own + mark.size());
      break;
    }
  }
  text = text.substr(0, text.find("  (Could this error message be improved?"));
  const size_t begin = text.find_first_not_of(" \n");
  if (begin == std::string::npos) {
    return "torch gave no reason";
  }
  return text.substr(begin, text.find('\n', begin) - begin);
}

}  // namespace pathways::detail
