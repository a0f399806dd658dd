// pathways-explain: explains image files with an exported explainer.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <pathways/explainer.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <filesystem>
#include <iostream>
#include <optional>
#include <set>

#include "describe.h"
#include "heatmap.h"
#include "image_file.h"
#include "image_fit.h"

namespace pathways::app {
namespace {

struct Options {
  std::string explainer;
  std::vector<std::string> images;
  std::optional<std::string> about;
  std::optional<std::string> heatmap;
  std::string device = "cpu";
  bool json = false;
  bool transfer = false;
  int64_t top = 8;
  int64_t batch = 32;
  int threads = 0;
};

c10::Device device_of(const std::string& name) {
  // Torch keeps the number in a byte, and a larger one would become another.
  const size_t colon = name.find(':');
  const bool fits = colon == std::string::npos || name.size() - colon <= 3;
  try {
    if (fits) {
      return c10::Device(name);
    }
  } catch (const std::exception&) {
    // as below
  }
  throw Error("device must be cpu, cuda or cuda:N, got '" + name + "'");
}

// Where the maps go: of several images "out.png" becomes "out-STEM.png", with a
// number behind a stem that is taken. No map may replace what is read.
std::vector<std::string> heatmap_paths(const Options& options) {
  namespace fs = std::filesystem;
  const fs::path base(*options.heatmap);
  if (base.filename().empty()) {
    throw Error("heatmap must be a file, got '" + *options.heatmap + "'");
  }
  std::vector<std::string> paths;
  std::set<std::string> taken;
  for (const std::string& image : options.images) {
    const std::string stem = fs::path(image).stem().string();
    fs::path path = base;
    for (int number = 1; options.images.size() > 1; ++number) {
      const std::string free =
          number == 1 ? stem : stem + "-" + std::to_string(number);
      path = base.parent_path() /
             (base.stem().string() + "-" + free + base.extension().string());
      if (taken.insert(free).second) {
        break;
      }
    }
    paths.push_back(path.string());
  }
  std::vector<std::string> inputs = options.images;
  inputs.push_back(options.explainer);
  for (const std::string& path : paths) {
    for (const std::string& input : inputs) {
      std::error_code none;
      if (fs::equivalent(path, input, none)) {
        throw Error("heatmap would overwrite " + input +
                    ", which is read; give it another name");
      }
    }
  }
  return paths;
}

// Images [first, last) of one shape, explained together.
void explain_batch(const Explainer& explainer, const Options& options,
                   const std::optional<int64_t>& about,
                   const std::vector<at::Tensor>& images,
                   const std::vector<std::string>& paths, size_t first,
                   size_t last, std::vector<Json>* results) {
  const std::vector<at::Tensor> part(
      images.begin() + static_cast<std::ptrdiff_t>(first),
      images.begin() + static_cast<std::ptrdiff_t>(last));
  const at::Tensor inputs = at::stack(part).to(at::kFloat) / 255;
  const Explanation explanation = explainer.explain(inputs);
  const std::vector<Json> described =
      describe(explainer, explanation, options.top);
  const at::Tensor classes = about.has_value()
                                 ? at::full({inputs.size(0)}, *about, at::kLong)
                                 : explanation.logits.argmax(1).cpu();
  at::Tensor transferred;
  if (options.transfer) {
    transferred = explainer.transfer(inputs, classes);
  }
  at::Tensor maps;
  if (!paths.empty()) {
    maps = explainer.grad_cam(inputs, classes, explanation.words);
  }
  for (size_t i = first; i < last; ++i) {
    const auto n = static_cast<int64_t>(i - first);
    Json result = {{"image", options.images[i]}};
    result.update(described[i - first]);
    const auto label = classes[n].item<int64_t>();
    const Json chosen = {
        {"class", label},
        {"name", explainer.info().classes[static_cast<size_t>(label)]}};
    if (options.transfer) {
      result["transfer"] = prediction(explainer, transferred[n]);
      result["transfer"]["pathway_of"] = chosen;
    }
    if (maps.defined()) {
      write_png(paths[i], heatmap(images[i], maps[n]));
      result["files"] = {{"heatmap", paths[i]}};
    }
    if (about.has_value()) {
      result["maps_for"] = chosen;
    }
    results->push_back(std::move(result));
  }
}

std::string probability(const Json& prediction) {
  char text[32];
  std::snprintf(text, sizeof(text), " %.3f",
                prediction.at("probability").get<double>());
  return prediction.at("name").get<std::string>() + text;
}

void print_table(const std::vector<Json>& results, bool transfer) {
  std::vector<std::vector<std::string>> rows = {
      {"image", "predicted", "pathway alone", "kept", "most important"}};
  if (transfer) {
    rows[0].insert(rows[0].begin() + 3, "class pathway");
  }
  for (const Json& result : results) {
    char kept[16];
    std::snprintf(kept, sizeof(kept), "%.3f", result.at("kept").get<double>());
    std::string top;
    for (size_t i = 0; i < std::min<size_t>(3, result.at("top").size()); ++i) {
      const Json& neuron = result.at("top")[i];
      top += (i == 0 ? "" : ", ") + neuron.at("site").get<std::string>() + ":" +
             std::to_string(neuron.at("channel").get<int64_t>());
    }
    std::vector<std::string> row = {
        std::filesystem::path(result.at("image").get<std::string>())
            .filename()
            .string(),
        probability(result.at("predicted")), probability(result.at("gated")),
        kept, top};
    if (transfer) {
      row.insert(row.begin() + 3, probability(result.at("transfer")));
    }
    rows.push_back(std::move(row));
  }
  std::vector<size_t> widths(rows[0].size(), 0);
  for (const auto& row : rows) {
    for (size_t i = 0; i < row.size(); ++i) {
      widths[i] = std::max(widths[i], row[i].size());
    }
  }
  for (const auto& row : rows) {
    for (size_t i = 0; i + 1 < row.size(); ++i) {
      std::cout << row[i] << std::string(widths[i] - row[i].size() + 2, ' ');
    }
    std::cout << row.back() << "\n";
  }
}

void run(const Options& options) {
  std::vector<std::string> paths;
  if (options.heatmap.has_value()) {
    paths = heatmap_paths(options);
  }
  const Explainer explainer =
      Explainer::load(options.explainer, device_of(options.device));
  const ExplainerInfo& info = explainer.info();
  std::optional<int64_t> about;
  if (options.about.has_value()) {
    about = class_index(*options.about, info.classes);
  }
  // Everything is read before the first file is written.
  const int64_t channels = image_channels(info);
  std::vector<at::Tensor> images;
  for (const std::string& path : options.images) {
    images.push_back(fit(read_image(path, channels), info));
  }
  std::vector<Json> results;
  for (size_t first = 0; first < images.size();) {
    size_t last = first + 1;
    while (last < images.size() &&
           last - first < static_cast<size_t>(options.batch) &&
           images[last].sizes() == images[first].sizes()) {
      ++last;
    }
    explain_batch(explainer, options, about, images, paths, first, last,
                  &results);
    first = last;
  }
  if (options.json) {
    const Json all = {{"explainer", options.explainer},
                      {"explanations", results}};
    std::cout << text_of(all, 2) << "\n";
  } else {
    print_table(results, options.transfer);
  }
  if (!std::cout.flush()) {
    throw Error("the results cannot be written to standard output");
  }
}

}  // namespace
}  // namespace pathways::app

int main(int argc, char** argv) {
  pathways::app::Options options;
  CLI::App app(
      "Explain images by neural pathways, with a file that `pathways export` "
      "wrote.\nSuch a file is code: use only those from a source you trust.");
  app.set_version_flag("--version", PATHWAYS_VERSION);
  app.add_option("explainer", options.explainer, "Explainer: .pt or .pt2.")
      ->required()
      ->type_name("FILE");
  app.add_option("images", options.images, "PNG or JPEG files.")
      ->required()
      ->type_name("IMAGE");
  app.add_option("--class", options.about,
                 "Class (name or number) for the map and the class pathway; "
                 "default: predicted.")
      ->type_name("NAME|K");
  app.add_flag("--json", options.json,
               "Print one JSON value, and nothing else.");
  app.add_option("--heatmap", options.heatmap,
                 "Write where the pathway looks as PNG; of several images, the "
                 "name gets theirs behind it.")
      ->type_name("OUT.png");
  app.add_flag("--transfer", options.transfer,
               "Also apply the class pathway in the file.");
  app.add_option("--top", options.top, "Most important neurons to name.")
      ->check(CLI::Range(0, 1000000))
      ->capture_default_str();
  app.add_option("--batch-size", options.batch, "Images explained together.")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  app.add_option("--threads", options.threads,
                 "Threads; default: what torch takes.")
      ->check(CLI::Range(1, 4096));
  app.add_option("--device", options.device, "cpu, cuda or cuda:N.")
      ->capture_default_str();
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    // 2 is wrong usage, as of the Python commands; 0 is --help.
    return app.exit(error) == 0 ? 0 : 2;
  }
  if (options.threads > 0) {
    at::set_num_threads(options.threads);
  }
  std::string failure;
  try {
    pathways::app::run(options);
    return 0;
  } catch (const c10::Error& error) {
    const std::string text = error.what_without_backtrace();
    failure = text.substr(0, text.find('\n'));
  } catch (const std::exception& error) {
    failure = error.what();
  }
  if (options.json) {
    std::cout << pathways::app::text_of({{"error", failure}}) << "\n";
  }
  std::cerr << "error: " << failure << "\n";
  return 1;
}
