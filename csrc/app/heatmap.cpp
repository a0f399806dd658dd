#include "heatmap.h"

#include <ATen/ATen.h>

#include <algorithm>

namespace pathways::app {
namespace {

constexpr int64_t kSmallestSide = 224;

// Viridis at nine places from 0 to 1, between which colours are mixed.
const at::Tensor& colours() {
  static const at::Tensor table =
      at::tensor({68, 1,   84,  71,  45,  123, 59,  82,  139,  //
                  44, 114, 142, 33,  145, 140, 40,  174, 128,  //
                  94, 201, 98,  173, 220, 48,  253, 231, 37},
                 at::kFloat)
          .view({9, 3});
  return table;
}

// [H, W] in [0, 1] to [3, H, W] in [0, 255].
at::Tensor coloured(const at::Tensor& map) {
  const at::Tensor place = map.clamp(0, 1).flatten() * 8;
  const at::Tensor low = place.floor().clamp(0, 7).to(at::kLong);
  const at::Tensor part = (place - low).unsqueeze(1);
  const at::Tensor mixed = colours().index_select(0, low) * (1 - part) +
                           colours().index_select(0, low + 1) * part;
  return mixed.view({map.size(0), map.size(1), 3}).permute({2, 0, 1});
}

}  // namespace

Pixels heatmap(const at::Tensor& image, const at::Tensor& map) {
  const int64_t shorter = std::min(image.size(1), image.size(2));
  const int64_t times = (kSmallestSide + shorter - 1) / shorter;
  const int64_t height = image.size(1) * times;
  const int64_t width = image.size(2) * times;
  // Pixels stay squares; the map is smooth anyway.
  const at::Tensor grey =
      at::upsample_nearest2d(image.to(at::kFloat)
                                 .mean(0)
                                 .view({1, 1, image.size(1), image.size(2)}),
                             {height, width})
          .view({height, width}) /
      255;
  const at::Tensor large =
      at::upsample_bilinear2d(
          map.cpu().to(at::kFloat).view({1, 1, map.size(0), map.size(1)}),
          {height, width}, false)
          .view({height, width});
  const at::Tensor shaded = (coloured(large) * (0.45 + 0.55 * grey))
                                .round()
                                .to(at::kByte)
                                .permute({1, 2, 0})
                                .contiguous();
  const uint8_t* from = shaded.const_data_ptr<uint8_t>();
  return {height, width, 3, {from, from + shaded.numel()}};
}

}  // namespace pathways::app
