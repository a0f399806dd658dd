// The C++ explainer under a sanitizer:
//
// calls FILE shared THREADS EACH: threads share an explainer, each calls all
// that it has EACH times; then calls with wrong arguments.
// calls FILE damaged SCRATCH: loads damaged copies of the file.
// calls FILE planted NAME: makes the mistake of that name, which the sanitizer
// has to report.
//
// Prints the number of calls made, or says what went wrong.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <pathways/explainer.h>

#include <atomic>
#include <climits>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>
#include <thread>
#include <vector>

namespace {

using pathways::Explainer;

std::atomic<int> calls = 0;

[[noreturn]] void stop(const std::string& what) {
  std::fprintf(stderr, "%s\n", what.c_str());
  std::exit(1);
}

at::Tensor images_of(const Explainer& explainer, int64_t count) {
  std::vector<int64_t> shape = explainer.info().image_shape;
  if (shape.empty()) {
    shape = explainer.info().input_shape;
  }
  shape.insert(shape.begin(), count);
  return at::rand(shape);
}

template <typename Function>
void refuses(const char* what, const Function& function) {
  ++calls;
  try {
    function();
  } catch (const pathways::Error&) {
    return;
  }
  stop(std::string(what) + " was accepted");
}

// Everything that is computed from the images, one after the other.
std::vector<at::Tensor> everything(const Explainer& explainer,
                                   const at::Tensor& images) {
  const pathways::Explanation e = explainer.explain(images);
  const at::Tensor classes = at::full({images.size(0)}, 1, at::kLong);
  const auto [logits, importance] = explainer.importance(images);
  calls += 9;  // with those below
  return {e.logits,
          e.gated_logits,
          e.importance,
          e.words,
          logits,
          importance,
          explainer.mask(e.words),
          pathways::overlap(e.words, e.words),
          explainer.pathway_gradient(images),
          explainer.grad_cam(images, classes, e.words.narrow(0, 0, 1)),
          explainer.transfer(images),
          explainer.transfer(images, classes)};
}

void wrong_arguments(const Explainer& explainer) {
  const at::Tensor images = images_of(explainer, 2);
  const auto count = static_cast<int64_t>(explainer.info().classes.size());
  refuses("other channels",
          [&] { explainer.explain(at::cat({images, images}, 1)); });
  refuses("no batch", [&] { explainer.explain(images[0]); });
  refuses("integers", [&] { explainer.importance(images.to(at::kLong)); });
  for (const int64_t label : {int64_t{-1}, count, INT64_MAX}) {
    const at::Tensor classes = at::full({2}, label, at::kLong);
    refuses("a class out of range",
            [&] { explainer.transfer(images, classes); });
    refuses("a class out of range",
            [&] { explainer.pathway_gradient(images, classes); });
    refuses("a class out of range",
            [&] { explainer.grad_cam(images, classes); });
  }
  const at::Tensor three = at::zeros({3}, at::kLong);
  refuses("classes of three", [&] { explainer.transfer(images, three); });
  refuses("float classes", [&] { explainer.transfer(images, at::zeros({2})); });
  const at::Tensor narrow = at::zeros({2, 0}, at::kLong);
  refuses("no words",
          [&] { explainer.grad_cam(images, std::nullopt, narrow); });
  refuses("no words", [&] { explainer.mask(narrow); });
  refuses("flat words", [&] { explainer.mask(at::zeros({2}, at::kLong)); });
  refuses("float words", [&] { pathways::overlap(images, images); });
}

// Damaged, a file is refused or, where the damage is in what nobody reads,
// works.
void damaged_files(const std::string& path, const std::string& scratch) {
  std::ifstream file(path, std::ios::binary);
  const std::string whole((std::istreambuf_iterator<char>(file)), {});
  const auto write = [&](const std::string& bytes) {
    std::ofstream(scratch, std::ios::binary) << bytes;
  };
  const auto load = [&] { Explainer::load(scratch); };
  write("not an archive");
  refuses("a text", load);
  refuses("an absent file", [&] { Explainer::load(scratch + ".absent"); });
  for (size_t part = 0; part < 20; ++part) {
    write(whole.substr(0, whole.size() * part / 20));
    refuses("a cut file", load);
  }
  for (size_t back = 1; back < 60; back += 3) {
    write(whole.substr(0, whole.size() - back));
    refuses("a cut file", load);
  }
  // The table of the archive is at the end.
  for (size_t back = 1; back < whole.size(); back += 1 + back / 4) {
    std::string changed = whole;
    char& byte = changed[whole.size() - back];
    byte = static_cast<char>(~byte);
    write(changed);
    ++calls;
    try {
      load();
    } catch (const pathways::Error&) {
    }
  }
}

bool equal(const std::vector<at::Tensor>& a, const std::vector<at::Tensor>& b) {
  bool same = true;
  for (size_t i = 0; i < a.size(); ++i) {
    same = same && at::equal(a[i], b[i]);
  }
  return same;
}

void many_threads(const Explainer& explainer, int count, int each) {
  std::vector<at::Tensor> images;
  std::vector<std::vector<at::Tensor>> expected;
  for (int i = 0; i < count; ++i) {
    images.push_back(images_of(explainer, 1 + i % 3));
    expected.push_back(everything(explainer, images.back()));
  }
  std::atomic<int> wrong = 0;
  std::vector<std::thread> threads;
  for (int own = 0; own < count; ++own) {
    threads.emplace_back([&, own] {
      at::set_num_threads(1);
      const Explainer copy = explainer;
      for (int i = 0; i < each; ++i) {
        const auto n = static_cast<size_t>((own + i) % count);
        wrong += !equal(everything(copy, images[n]), expected[n]);
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  if (wrong != 0) {
    stop(std::to_string(wrong) + " results differ");
  }
}

void planted(const Explainer& explainer, const std::string& name) {
  const at::Tensor images = images_of(explainer, 1);
  if (name == "leak") {
    // With everything that the file brought along.
    auto* lost = new Explainer(explainer);
    std::printf("%d\n", lost->device().is_cpu());
  } else if (name == "overflow") {
    // Behind a result of torch.
    const at::Tensor logits = explainer.explain(images).logits.contiguous();
    std::printf("%f\n", logits.const_data_ptr<float>()[logits.numel()]);
  } else if (name == "use_after_free") {
    const float* gone = nullptr;
    {
      const at::Tensor logits = explainer.explain(images).logits.contiguous();
      gone = logits.const_data_ptr<float>();
    }
    std::printf("%f\n", *gone);
  } else if (name == "undefined") {
    volatile int large = INT_MAX;
    std::printf("%d\n", large + 1);
  } else if (name == "race") {
    int shared = 0;
    const auto work = [&] {
      for (int i = 0; i < 4; ++i) {
        explainer.explain(images);
        ++shared;
      }
    };
    std::thread first(work);
    std::thread second(work);
    first.join();
    second.join();
    std::printf("%d\n", shared);
  } else {
    stop("no mistake is called " + name);
  }
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 4) {
    stop("calls takes FILE shared|damaged|planted and what that needs");
  }
  const std::string path = arguments[1];
  const std::string what = arguments[2];
  at::set_num_threads(1);
  if (what == "damaged") {
    damaged_files(path, arguments[3]);
  } else {
    const Explainer explainer = Explainer::load(path);
    if (what == "planted") {
      planted(explainer, arguments[3]);
      return 0;
    }
    many_threads(explainer, std::atoi(arguments[3]), std::atoi(arguments[4]));
    wrong_arguments(explainer);
  }
  std::printf("%d\n", calls.load());
  return 0;
}
