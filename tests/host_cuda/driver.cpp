// Runs the kernels without Python, for sanitizers:
//   driver PART SEED     kernels over a set of shapes; PART is one of those
//                        below or all, SEED as for set_order
//   driver planted NAME  one planted mistake
// Exit code 0 when nothing was noticed. Results are checked only where that is
// one line: tests/cuda/test_host_*.py compare them with the reference.

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "host_cuda.h"

namespace {

constexpr int64_t kTypes = 4;  // float, double, half, bfloat16
constexpr int64_t kSizes[] = {4, 8, 2, 2};

[[noreturn]] void fail(const std::string& what) {
  std::fprintf(stderr, "driver: %s\n", what.c_str());
  std::exit(1);
}

void expect_null(const char* message) {
  if (message != nullptr) {
    fail(message);
  }
}

uint32_t next_random() {
  static uint32_t state = 1;
  state = state * 1664525u + 1013904223u;
  return state >> 8;
}

// Exactly as many bytes as asked for, from `offset` bytes behind an aligned
// address on: what lies beyond is not ours.
class Memory {
 public:
  explicit Memory(int64_t bytes, int64_t offset = 0)
      : data_(new char[static_cast<size_t>(bytes + offset)]), offset_(offset) {
    std::memset(data_.get(), 0, static_cast<size_t>(bytes + offset));
  }
  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(data_.get() + offset_);
  }
  void* get() const { return data_.get() + offset_; }

 private:
  std::unique_ptr<char[]> data_;
  int64_t offset_;
};

// Zeros, ones and a few other values.
Memory values(int64_t type, int64_t count, int64_t offset = 0) {
  static const uint16_t kHalf[] = {0, 0x3c00, 0xbc00, 0x3800, 0x4200};
  static const uint16_t kBfloat[] = {0, 0x3f80, 0xbf80, 0x3f00, 0x4040};
  static const float kFloat[] = {0, 1, -1, 0.5f, 3};
  Memory memory(count * kSizes[type], offset * kSizes[type]);
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t which = next_random() % 5;
    switch (type) {
      case 0: memory.as<float>()[i] = kFloat[which]; break;
      case 1: memory.as<double>()[i] = kFloat[which]; break;
      case 2: memory.as<uint16_t>()[i] = kHalf[which]; break;
      default: memory.as<uint16_t>()[i] = kBfloat[which]; break;
    }
  }
  return memory;
}

Memory words(int64_t count, int64_t offset = 0) {
  Memory memory(count * 8, offset * 8);
  for (int64_t i = 0; i < count; ++i) {
    for (int k = 0; k < 3; ++k) {
      memory.as<uint64_t>()[i] = memory.as<uint64_t>()[i] << 22 ^ next_random();
    }
  }
  return memory;
}

enum class Gate { kInput, kShared, kUnit };

void gated(int64_t type, Gate kind, bool innermost, const int64_t (&sizes)[3],
           int64_t offset) {
  const int64_t count = sizes[0] * sizes[1] * sizes[2];
  const int64_t gates = kind == Gate::kUnit    ? count
                        : kind == Gate::kInput ? sizes[0] * sizes[1]
                                               : sizes[1];
  const bool flags[] = {kind == Gate::kUnit, kind == Gate::kInput, innermost};
  const int64_t acc = type == 1 ? 1 : 0;
  const int64_t activation = (count + type) % 5;
  const Memory x = values(type, count, offset);
  const Memory grad = values(type, count, offset);
  const Memory gate = values(type, gates);
  const Memory bias = values(acc, sizes[1], offset);
  const Memory y(count * kSizes[type], offset * kSizes[type]);
  expect_null(host_cuda_gated_forward(type, x.get(), y.get(), type, gate.get(),
                                      bias.get(), nullptr, activation, sizes,
                                      flags, 1));
  const Memory grad_x(count * kSizes[type], offset * kSizes[type]);
  const Memory grad_gate(gates * kSizes[type]);
  const Memory grad_bias(sizes[1] * kSizes[acc]);
  expect_null(host_cuda_gated_backward(
      type, grad.get(), x.get(), type, gate.get(), bias.get(), bias.get(),
      activation, grad_x.get(), grad_gate.get(), acc, grad_bias.get(), sizes,
      flags, 1));
  // Without sums, closed gates take a way of their own.
  expect_null(host_cuda_gated_backward(
      type, grad.get(), x.get(), type, gate.get(), nullptr, nullptr, activation,
      grad_x.get(), nullptr, acc, nullptr, sizes, flags, 1));
}

void run_gated() {
  // Parts of a vector, rows across vectors, several blocks, no space at all.
  static const int64_t kShapes[][3] = {
      {2, 3, 9}, {2, 8, 33}, {1, 2, 4200}, {3, 40, 1}};
  for (int64_t type = 0; type < kTypes; ++type) {
    for (const auto& shape : kShapes) {
      for (const bool innermost : {false, true}) {
        const Gate kind = static_cast<Gate>(next_random() % 3);
        gated(type, kind, innermost, shape, 0);
        gated(type, kind == Gate::kUnit ? Gate::kInput : Gate::kUnit, innermost,
              shape, shape[2] % 2);
      }
    }
  }
}

void run_binarize() {
  for (int64_t type = 0; type < kTypes; ++type) {
    for (const int64_t count : {1, 67, 3000}) {
      const int64_t offset = count % 3;
      const Memory from = values(type, count, offset);
      const Memory grad = values(type, count, offset);
      const Memory to(count * kSizes[type], offset * kSizes[type]);
      expect_null(host_cuda_binarize(type, from.get(), count, to.get(), 1));
      expect_null(host_cuda_binarize_backward(type, grad.get(), from.get(),
                                              count, 1, 2, to.get(), 1));
    }
  }
}

void run_pooling() {
  // Cells of one lane and of a warp, a column, overlapping, several blocks.
  static const int64_t kShapes[][6] = {{2, 3, 8, 8, 4, 4},
                                       {1, 2, 7, 70, 3, 2},
                                       {2, 3, 9, 1, 2, 1},
                                       {1, 300, 3, 2, 2, 5},
                                       {1, 2, 5, 7, 5, 7}};
  for (int64_t type = 0; type < kTypes; ++type) {
    for (const auto& sizes : kShapes) {
      const int64_t planes = sizes[0] * sizes[1];
      const int64_t offset = sizes[2] % 2;
      const Memory x = values(type, planes * sizes[2] * sizes[3], offset);
      for (const bool innermost : {false, true}) {
        const Memory y(2 * planes * sizes[4] * sizes[5] * kSizes[type],
                       offset * kSizes[type]);
        expect_null(host_cuda_adaptive_pool(type, x.get(), y.get(), sizes,
                                            innermost, 1));
      }
    }
  }
}

void run_packing() {
  for (const int64_t bytes : {1, 2, 4, 8}) {
    for (const int64_t size : {1, 63, 64, 65, 200}) {
      const int64_t rows = 5;
      const int64_t width = (size + 63) / 64;
      // Rows side by side, and columns side by side.
      for (const bool transposed : {false, true}) {
        const Memory mask(rows * size * bytes);
        for (int64_t i = 0; i < rows * size; ++i) {
          mask.as<char>()[i * bytes] = static_cast<char>(next_random() % 2);
        }
        const Memory packed(rows * width * 8);
        expect_null(host_cuda_pack_bits(
            bytes, false, mask.get(), transposed ? 1 : size,
            transposed ? rows : 1, rows, size, packed.as<uint64_t>(), 1));
        const Memory back(rows * size);
        expect_null(host_cuda_unpack_bits(packed.as<uint64_t>(), width, rows,
                                          size, back.as<uint8_t>(), 1));
        for (int64_t row = 0; row < rows; ++row) {
          for (int64_t i = 0; i < size; ++i) {
            const int64_t at = transposed ? i * rows + row : row * size + i;
            if (mask.as<char>()[at * bytes] != back.as<char>()[row * size + i])
              fail("unpack_bits does not give back what pack_bits took");
          }
        }
      }
    }
  }
}

void pairwise(int64_t product, int64_t rows_a, int64_t rows_b, int64_t width,
              int64_t offset, bool same) {
  const Memory a = words(rows_a * width, offset);
  const Memory b = words(rows_b * width);
  const uint64_t* right = same ? a.as<uint64_t>() : b.as<uint64_t>();
  const int64_t columns = same ? rows_a : rows_b;
  const Memory both(rows_a * columns * 4);
  expect_null(host_cuda_pairwise_intersection(a.as<uint64_t>(), width, rows_a,
                                              right, width, columns, width,
                                              product, both.as<int32_t>(), 1));
  for (int64_t i = 0; i < rows_a; ++i) {
    for (int64_t j = 0; j < columns; ++j) {
      int32_t expected = 0;
      for (int64_t k = 0; k < width; ++k) {
        expected += __builtin_popcountll(a.as<uint64_t>()[i * width + k] &
                                         right[j * width + k]);
      }
      if (both.as<int32_t>()[i * columns + j] != expected)
        fail("pairwise_intersection counts wrongly");
    }
  }
  const Memory iou(rows_a * columns * 4);
  expect_null(host_cuda_pairwise_iou(a.as<uint64_t>(), width, rows_a, right,
                                     width, columns, width, product,
                                     iou.as<float>(), 1));
}

void run_products() {
  for (const int64_t product : {0, 1, 2}) {
    pairwise(product, 3, 5, 1, 0, false);
    pairwise(product, 66, 9, 9, 1, false);    // rows between two vectors
    pairwise(product, 4, 132, 34, 0, false);  // more chunks than stages
    pairwise(product, 130, 130, 2, 0, true);
  }
}

void run_classes() {
  for (const int64_t rows : {7, 150}) {
    const int64_t size = 130;
    const int64_t width = 3;
    const int64_t classes = 3;
    const Memory packed = words(rows * width);
    std::vector<int64_t> labels(static_cast<size_t>(rows));
    for (int64_t& label : labels) {
      label = next_random() % classes;
    }
    std::vector<double> sums[2];
    for (const int64_t product : {0, 1}) {
      sums[product].resize(static_cast<size_t>(classes * classes));
      expect_null(host_cuda_class_overlap(packed.as<uint64_t>(), width, rows,
                                          width, labels.data(), classes,
                                          product, sums[product].data(), 1));
    }
    if (sums[0] != sums[1]) {
      fail("class_overlap depends on the product");
    }
    std::vector<int64_t> frequency(static_cast<size_t>(classes * size));
    expect_null(host_cuda_class_frequency(packed.as<uint64_t>(), width, rows,
                                          size, labels.data(), classes,
                                          frequency.data(), 1));
  }
}

}  // namespace

int main(int count, char** arguments) {
  static const std::map<std::string, void (*)()> kParts{
      {"gated", &run_gated},     {"binarize", &run_binarize},
      {"packing", &run_packing}, {"products", &run_products},
      {"classes", &run_classes}, {"pooling", &run_pooling},
  };
  const std::string part = count == 3 ? arguments[1] : "";
  if (part == "planted") {
    const Memory out(64 * sizeof(float));
    expect_null(host_cuda_planted(arguments[2], out.as<float>()));
  } else if (part == "all" || kParts.count(part) != 0) {
    host_cuda_set_order(static_cast<unsigned>(std::atoi(arguments[2])));
    for (const auto& [name, run] : kParts) {
      if (part == "all" || part == name) {
        run();
      }
    }
  } else {
    fail("usage: driver PART SEED | driver planted NAME");
  }
  std::puts("nothing noticed");
  return 0;
}
