#pragma once

// A picture of where a pathway looks.

#include <ATen/core/Tensor.h>

#include "image_file.h"

namespace pathways::app {

// The image (uint8 [C, H, W]) in grey, under `map` (float [h, w] in [0, 1]) in
// colours, enlarged to at least 224 pixels a side.
Pixels heatmap(const at::Tensor& image, const at::Tensor& map);

}  // namespace pathways::app
