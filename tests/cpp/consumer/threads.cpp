// threads FILE THREADS CALLS: many threads share one explainer, each call with
// images of its own; all results must be those of a first, single run, and the
// memory must not grow. Prints the growth in KiB.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <pathways/explainer.h>

#include <unistd.h>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <thread>
#include <vector>

namespace {

int64_t resident_kib() {
  std::ifstream file("/proc/self/statm");
  int64_t all = 0;
  int64_t resident = 0;
  file >> all >> resident;
  return resident * sysconf(_SC_PAGESIZE) / 1024;
}

}  // namespace

int main(int, char** arguments) {
  const auto explainer = pathways::Explainer::load(arguments[1]);
  const int count = std::atoi(arguments[2]);
  const int calls = std::atoi(arguments[3]);
  at::set_num_threads(1);
  std::vector<int64_t> shape = explainer.info().input_shape;
  shape.insert(shape.begin(), 2);
  std::vector<at::Tensor> images;
  std::vector<pathways::Explanation> expected;
  std::vector<at::Tensor> gradients;
  for (int i = 0; i < count; ++i) {
    images.push_back(at::rand(shape));
    expected.push_back(explainer.explain(images.back()));
    gradients.push_back(explainer.pathway_gradient(images.back()));
  }
  std::atomic<int> wrong = 0;
  const auto work = [&](int own, int repeats) {
    at::set_num_threads(1);
    for (int i = 0; i < repeats; ++i) {
      const auto n = static_cast<size_t>((own + i) % count);
      if (i % 10 == 0) {
        const at::Tensor gradient = explainer.pathway_gradient(images[n]);
        wrong += !at::equal(gradient, gradients[n]);
        continue;
      }
      const pathways::Explanation e = explainer.explain(images[n]);
      wrong += !(at::equal(e.logits, expected[n].logits) &&
                 at::equal(e.gated_logits, expected[n].gated_logits) &&
                 at::equal(e.importance, expected[n].importance) &&
                 at::equal(e.words, expected[n].words));
    }
  };
  const auto run = [&](int repeats) {
    std::vector<std::thread> threads;
    for (int i = 0; i < count; ++i) {
      threads.emplace_back(work, i, repeats);
    }
    for (std::thread& thread : threads) {
      thread.join();
    }
  };
  // The first calls fill caches of torch and of malloc.
  run(std::max(1, calls / 5 / count));
  const int64_t before = resident_kib();
  run(calls / count);
  std::printf("%lld\n", static_cast<long long>(resident_kib() - before));
  if (wrong != 0) {
    std::fprintf(stderr, "%d results differ\n", wrong.load());
    return 1;
  }
  return 0;
}
