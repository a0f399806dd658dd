#pragma once

// Explanations as JSON, with the keys of `pathways explain --json`
// (docs/formats.md).

#include <pathways/explainer.h>

#include <nlohmann/json.hpp>

namespace pathways::app {

// Keys keep the order in which they are written.
using Json = nlohmann::ordered_json;

// As text. Names of files need not be UTF-8; what is not is replaced.
std::string text_of(const Json& json, int indent = -1);

// One entry for every image. `top`: neurons named per site, and in all.
std::vector<Json> describe(const Explainer& explainer,
                           const Explanation& explanation, int64_t top);

// `class`, `name` and `probability` of the most probable class.
Json prediction(const Explainer& explainer, const at::Tensor& logits);

// The number of a class, from its name or its number. Raises Error for neither.
int64_t class_index(const std::string& name,
                    const std::vector<std::string>& classes);

}  // namespace pathways::app
