// Loads an explainer with libtorch alone; the ops are not there.

#include <torch/script.h>

#include <cstdio>

int main(int, char** arguments) {
  try {
    torch::jit::load(arguments[1]);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
