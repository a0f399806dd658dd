#include "describe.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <charconv>

namespace pathways::app {
namespace {

Json prediction_of(const Explainer& explainer, const at::Tensor& probabilities,
                   int64_t label) {
  return {{"class", label},
          {"name", explainer.info().classes.at(static_cast<size_t>(label))},
          {"probability", probabilities[label].item<double>()}};
}

// The most important kept neurons of a site.
std::vector<Json> top_of(const Site& site, bool units, const at::Tensor& scores,
                         const at::Tensor& kept, int64_t top) {
  const int64_t count = std::min(top, kept.sum().item<int64_t>());
  const auto [values, indices] =
      scores.masked_fill(kept.logical_not(), -INFINITY).topk(count);
  std::vector<Json> entries;
  for (int64_t i = 0; i < count; ++i) {
    int64_t neuron = indices[i].item<int64_t>();
    Json entry = {{"site", site.key}, {"channel", neuron}};
    if (units && site.shape.size() > 1) {
      const int64_t inside = site.neurons / site.shape[0];
      entry["channel"] = neuron / inside;
      neuron %= inside;
      std::vector<int64_t> position(site.shape.size() - 1);
      for (size_t dim = position.size(); dim-- > 0;) {
        position[dim] = neuron % site.shape[dim + 1];
        neuron /= site.shape[dim + 1];
      }
      entry["position"] = position;
    }
    entry["importance"] = values[i].item<double>();
    entries.push_back(std::move(entry));
  }
  return entries;
}

double share(int64_t part, int64_t whole) {
  return static_cast<double>(part) / static_cast<double>(whole);
}

Json neurons(int64_t kept, int64_t total) {
  return {{"kept", kept}, {"total", total}};
}

Json describe_one(const Explainer& explainer, const at::Tensor& logits,
                  const at::Tensor& gated_logits, const at::Tensor& importance,
                  const at::Tensor& mask, int64_t top) {
  const ExplainerInfo& info = explainer.info();
  const at::Tensor clean = logits.to(at::kDouble).softmax(0);
  const at::Tensor gated = gated_logits.to(at::kDouble).softmax(0);
  const auto label = logits.argmax().item<int64_t>();
  const auto gated_label = gated_logits.argmax().item<int64_t>();
  Json sites = Json::array();
  std::vector<Json> every;
  int64_t first = 0;
  int64_t all_kept = 0;
  for (const Site& site : info.sites) {
    const at::Tensor kept = mask.narrow(0, first, site.neurons);
    const int64_t count = kept.sum().item<int64_t>();
    const std::vector<Json> ranked = top_of(
        site, info.units, importance.narrow(0, first, site.neurons), kept, top);
    every.insert(every.end(), ranked.begin(), ranked.end());
    sites.push_back({{"site", site.key},
                     {"activation", site.activation},
                     {"shape", site.shape},
                     {"kept", share(count, site.neurons)},
                     {"neurons", neurons(count, site.neurons)},
                     {"top", ranked}});
    first += site.neurons;
    all_kept += count;
  }
  std::stable_sort(
      every.begin(), every.end(), [](const Json& a, const Json& b) {
        return a["importance"].get<double>() > b["importance"].get<double>();
      });
  every.resize(std::min(every.size(), static_cast<size_t>(top)));
  return {{"predicted", prediction_of(explainer, clean, label)},
          {"gated", prediction_of(explainer, gated, gated_label)},
          {"gated_probability_of_predicted", gated[label].item<double>()},
          {"agrees", label == gated_label},
          {"kept", share(all_kept, info.neurons)},
          {"neurons", neurons(all_kept, info.neurons)},
          {"sites", sites},
          {"top", every}};
}

}  // namespace

std::string text_of(const Json& json, int indent) {
  return json.dump(indent, ' ', false, Json::error_handler_t::replace);
}

std::vector<Json> describe(const Explainer& explainer,
                           const Explanation& explanation, int64_t top) {
  const at::Tensor logits = explanation.logits.cpu();
  const at::Tensor gated = explanation.gated_logits.cpu();
  const at::Tensor importance = explanation.importance.cpu();
  const at::Tensor mask = explainer.mask(explanation.words).cpu();
  std::vector<Json> described;
  for (int64_t n = 0; n < logits.size(0); ++n) {
    described.push_back(describe_one(explainer, logits[n], gated[n],
                                     importance[n], mask[n], top));
  }
  return described;
}

Json prediction(const Explainer& explainer, const at::Tensor& logits) {
  const at::Tensor probabilities = logits.cpu().to(at::kDouble).softmax(0);
  return prediction_of(explainer, probabilities,
                       probabilities.argmax().item<int64_t>());
}

int64_t class_index(const std::string& name,
                    const std::vector<std::string>& classes) {
  const auto found = std::find(classes.begin(), classes.end(), name);
  if (found != classes.end()) {
    return found - classes.begin();
  }
  size_t number = 0;
  const char* end = name.data() + name.size();
  const auto [stop, failed] = std::from_chars(name.data(), end, number);
  if (failed == std::errc() && stop == end && number < classes.size()) {
    return static_cast<int64_t>(number);
  }
  std::string shown;
  for (size_t i = 0; i < std::min<size_t>(classes.size(), 12); ++i) {
    shown += (i == 0 ? "" : ", ") + classes[i];
  }
  throw Error("class must be a name (" + shown +
              (classes.size() > 12 ? ", ..." : "") + ") or a number in [0, " +
              std::to_string(classes.size()) + "), got '" + name + "'");
}

}  // namespace pathways::app
