// images SCRATCH FILE...: reads every file, then copies of it that are cut at
// every 50th byte, or have a byte flipped or three exchanged. Each is read or
// refused by an Error. Prints how many were read and how many refused.

#include <pathways/explainer.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "image_file.h"

namespace {

using Bytes = std::vector<char>;

int accepted = 0;
int refused = 0;

void try_bytes(const std::string& path, const Bytes& bytes) {
  std::ofstream(path, std::ios::binary)
      .write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  for (const int64_t channels : {1, 3}) {
    try {
      const auto pixels = pathways::app::read_image(path, channels);
      if (pixels.values.size() !=
          static_cast<size_t>(pixels.height * pixels.width * channels)) {
        std::fprintf(stderr, "%s: pixels are missing\n", path.c_str());
        std::exit(1);
      }
      ++accepted;
    } catch (const pathways::Error&) {
      ++refused;
    }
  }
}

}  // namespace

int main(int count, char** arguments) {
  const std::string scratch = arguments[1];
  uint32_t random = 1;
  for (int i = 2; i < count; ++i) {
    std::ifstream file(arguments[i], std::ios::binary);
    const Bytes whole((std::istreambuf_iterator<char>(file)), {});
    try_bytes(scratch, whole);
    for (size_t length = 0; length < whole.size(); length += 50) {
      try_bytes(scratch, Bytes(whole.begin(), whole.begin() + length));
    }
    for (size_t at = 2; at < whole.size(); at += 1 + at / 10) {
      Bytes changed = whole;
      changed[at] = static_cast<char>(~changed[at]);
      try_bytes(scratch, changed);
    }
    for (int repeat = 0; repeat < 40; ++repeat) {
      Bytes changed = whole;
      for (int change = 0; change < 3; ++change) {
        random = random * 1664525u + 1013904223u;
        changed[8 + (random >> 8) % (whole.size() - 8)] =
            static_cast<char>(random >> 24);
      }
      try_bytes(scratch, changed);
    }
  }
  std::printf("%d %d\n", accepted, refused);
  return 0;
}
