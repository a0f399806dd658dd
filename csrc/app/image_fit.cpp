#include "image_fit.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

namespace pathways::app {
namespace {

at::Tensor resized(const at::Tensor& image, int64_t height, int64_t width) {
  const at::Tensor large = at::_upsample_bicubic2d_aa(
      image.unsqueeze(0).to(at::kFloat), {height, width}, false);
  return large.squeeze(0).round().clamp(0, 255).to(at::kByte);
}

// The shorter side resized to `size`, the centre cropped.
at::Tensor fit_square(at::Tensor image, int64_t size) {
  const int64_t shorter = std::min(image.size(1), image.size(2));
  // A strip a thousand times longer than wide would be blown up a thousand
  // times before the crop.
  for (const int64_t dim : {1, 2}) {
    const int64_t length = std::min(image.size(dim), 4 * shorter);
    image = image.narrow(dim, (image.size(dim) - length) / 2, length);
  }
  const auto scaled = [&](int64_t side) {
    const double exact =
        static_cast<double>(side * size) / static_cast<double>(shorter);
    // Half to even, the default mode.
    return std::max(size, static_cast<int64_t>(std::nearbyint(exact)));
  };
  const int64_t height = scaled(image.size(1));
  const int64_t width = scaled(image.size(2));
  if (height != image.size(1) || width != image.size(2)) {
    image = resized(image, height, width);
  }
  return image.narrow(1, (height - size) / 2, size)
      .narrow(2, (width - size) / 2, size);
}

const std::vector<int64_t>& image_shape(const ExplainerInfo& info) {
  return info.image_shape.empty() ? info.input_shape : info.image_shape;
}

}  // namespace

int64_t image_channels(const ExplainerInfo& info) {
  const std::vector<int64_t>& shape = image_shape(info);
  if (shape.size() != 3 || (shape[0] != 1 && shape[0] != 3)) {
    std::string text;
    for (const int64_t size : shape) {
      text += (text.empty() ? "" : ", ") + std::to_string(size);
    }
    throw Error(
        "the explainer must take images of 1 or 3 channels, it takes [" + text +
        "]");
  }
  return shape[0];
}

at::Tensor fit(const Pixels& pixels, const ExplainerInfo& info) {
  const std::vector<int64_t>& shape = image_shape(info);
  const at::Tensor image =
      at::from_blob(const_cast<uint8_t*>(pixels.values.data()),
                    {pixels.height, pixels.width, pixels.channels}, at::kByte)
          .permute({2, 0, 1})
          .clone(at::MemoryFormat::Contiguous);  // `pixels` goes away
  if (image.size(1) == shape[1] && image.size(2) == shape[2]) {
    return image;
  }
  if (shape[1] == shape[2]) {
    return fit_square(image, shape[1]).contiguous();
  }
  return info.resize.empty() ? resized(image, shape[1], shape[2]) : image;
}

}  // namespace pathways::app
