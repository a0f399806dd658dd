#pragma once

// PNG and JPEG files as pixels, with the conversions that Pillow makes, so that
// a program without Python explains the same pixels.

#include <cstdint>
#include <string>
#include <vector>

namespace pathways::app {

// Rows of interleaved channels, 8 bits each.
struct Pixels {
  int64_t height = 0;
  int64_t width = 0;
  int64_t channels = 0;
  std::vector<uint8_t> values;
};

// More would be a decompression bomb, or a mistake.
constexpr int64_t kMaxPixels = 178956970;

// Reads a file as grey (1 channel) or RGB (3). An alpha channel is dropped, 16
// bits are reduced to 8, CMYK is converted. Raises Error where the file is
// absent, no PNG or JPEG, damaged, or of more than kMaxPixels.
Pixels read_image(const std::string& path, int64_t channels);

// Writes an RGB or grey image as PNG, in one step: an old file stays whole
// where that fails.
void write_png(const std::string& path, const Pixels& pixels);

}  // namespace pathways::app
