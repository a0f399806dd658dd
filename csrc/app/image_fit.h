#pragma once

// From the pixels of a file to what an explainer takes.

#include <ATen/core/Tensor.h>
#include <pathways/explainer.h>

#include "image_file.h"

namespace pathways::app {

// Channels of the images that an explainer takes; raises Error where it takes
// no images.
int64_t image_channels(const ExplainerInfo& info);

// uint8 [C, H, W] in the size that `pathways explain` gives an image: the
// centre, cropped, for square images; resized for others, unless the file
// resizes by itself.
at::Tensor fit(const Pixels& pixels, const ExplainerInfo& info);

}  // namespace pathways::app
