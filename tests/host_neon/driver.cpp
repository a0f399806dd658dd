// Calls every function of the tables of inner loops (csrc/ops/cpu/*_loops.h) at
// the level that PATHWAYS_CPU_CAPABILITY names, without torch and Python:
//   driver [PREFIX]  the cases whose name begins with PREFIX, or all
// Prints the level and then, for each case, its name and a hash of the bytes of
// its results. Equal lines are equal bits, on one machine and between machines.
// Exit code 1 when a loop wrote outside its results.
//
// No case makes a NaN of other numbers, whose sign differs between processors;
// NaN in the input is only handed on, or stays behind a closed gate.

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <initializer_list>
#include <numeric>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "../../csrc/ops/cpu/adaptive_avg_max_pool2d_loops.h"
#include "../../csrc/ops/cpu/binarize_loops.h"
#include "../../csrc/ops/cpu/bit_tile_loops.h"
#include "../../csrc/ops/cpu/class_frequency_loops.h"
#include "../../csrc/ops/cpu/gated_loops.h"
#include "../../csrc/ops/cpu/pack_bits_loops.h"

// The loops call these for doubles. Those of the C library differ in the last
// place between machines; these take its place in this program and do not. They
// are roughly right, and no NaN comes from another number.
extern "C" {
double exp(double x) noexcept {
  const double t = (x > 700.0 ? 700.0 : x > -700.0 ? x : -700.0) / 1024.0;
  double power = 1.0 + t * (1.0 + t * (0.5 + t / 6.0));
  for (int i = 0; i < 10; ++i) {
    power *= power;
  }
  return power;
}

double expm1(double x) noexcept {
  return exp(x) - 1.0;
}

double erf(double x) noexcept {
  return x / (1.0 + (x < 0.0 ? -x : x));
}
}

namespace pathways {
namespace {

// ----------------------------------------------------------------- cases

std::string prefix;
std::string current;  // name of the case

uint64_t hash_of(const void* bytes, size_t count, uint64_t hash) {  // FNV-1a
  for (size_t i = 0; i < count; ++i) {
    hash = (hash ^ static_cast<const uint8_t*>(bytes)[i]) * 0x100000001b3u;
  }
  return hash;
}

constexpr uint64_t kHashStart = 0xcbf29ce484222325u;

template <typename... Parts>
std::string name_of(const Parts&... parts) {
  std::ostringstream name;
  ((name << parts << ' '), ...);
  std::string result = name.str();
  result.pop_back();
  return result;
}

bool wanted(const std::string& name) {
  current = name;
  return name.compare(0, prefix.size(), prefix) == 0;
}

// The same numbers for a name everywhere, whichever cases ran before.
class Random {
 public:
  explicit Random(const std::string& name)
      : state_(hash_of(name.data(), name.size(), kHashStart)) {}

  uint64_t below(uint64_t count) { return (next() >> 33) % count; }
  uint64_t bits() {
    const uint64_t high = next() >> 32;
    return high << 32 | next() >> 32;
  }

 private:
  uint64_t next() {
    return state_ = state_ * 6364136223846793005u + 1442695040888963407u;
  }

  uint64_t state_;
};

// Memory `offset` bytes behind a boundary of 64, between two zones that must
// stay as they are.
class Memory {
 public:
  explicit Memory(int64_t bytes, int64_t offset = 0)
      : data_(static_cast<size_t>(bytes + offset) + 3 * kZone, kPattern),
        bytes_(static_cast<size_t>(bytes)) {
    const auto begin = reinterpret_cast<uintptr_t>(data_.data());
    begin_ = 2 * kZone - begin % kZone + static_cast<size_t>(offset);
  }
  Memory(Memory&&) = default;
  ~Memory() {
    for (size_t i = 0; i < data_.size(); ++i) {
      const bool inside = i >= begin_ && i < begin_ + bytes_;
      if (!inside && data_[i] != kPattern) {
        std::fprintf(stderr, "a loop wrote outside its results: %s\n",
                     current.c_str());
        std::fflush(stdout);
        std::_Exit(1);
      }
    }
  }

  template <typename T = void>
  T* as() {
    return reinterpret_cast<T*>(data_.data() + begin_);
  }
  uint64_t hash(uint64_t start) const {
    return hash_of(data_.data() + begin_, bytes_, start);
  }

 private:
  static constexpr size_t kZone = 64;
  static constexpr uint8_t kPattern = 0xa5;
  std::vector<uint8_t> data_;
  size_t bytes_;
  size_t begin_;
};

void report(const std::string& name,
            std::initializer_list<const Memory*> results) {
  uint64_t hash = kHashStart;
  for (const Memory* memory : results) {
    hash = memory->hash(hash);
  }
  std::printf("%s: %016llx\n", name.c_str(),
              static_cast<unsigned long long>(hash));
}

// --------------------------------------------------------------- numbers

struct Type {
  ElementType type;
  const char* name;
  int64_t bytes;
  int mantissa;      // bits
  uint64_t largest;  // exponent field of infinity and NaN
};

constexpr Type kFloat{ElementType::kFloat, "float", 4, 23, 255};
constexpr Type kDouble{ElementType::kDouble, "double", 8, 52, 2047};
constexpr Type kTypes[] = {kFloat,
                           kDouble,
                           {ElementType::kHalf, "half", 2, 10, 31},
                           {ElementType::kBFloat16, "bfloat16", 2, 7, 255}};

const Type& compute_type(const Type& type) {
  return type.type == ElementType::kDouble ? kDouble : kFloat;
}

void put(const Type& type, Memory& memory, int64_t i, uint64_t bits) {
  std::memcpy(memory.as<char>() + i * type.bytes, &bits,
              static_cast<size_t>(type.bytes));
}

uint64_t with_sign(const Type& type, uint64_t bits, bool negative) {
  return bits | uint64_t{negative} << (8 * type.bytes - 1);
}

// A number of size 2^exponent to 2^(exponent + 1).
uint64_t number(const Type& type, int exponent, uint64_t mantissa) {
  const auto field = static_cast<int>(type.largest / 2) + exponent;
  return static_cast<uint64_t>(field) << type.mantissa |
         (mantissa & ((uint64_t{1} << type.mantissa) - 1));
}

// Of size 2^-10 to 2^(last + 1) mostly; some zeros, numbers below the normal
// ones, and those where activations and gates change their course.
uint64_t any_number(const Type& type, Random& random, int last) {
  const uint64_t mantissa = random.bits();
  const bool negative = random.below(2) != 0;
  uint64_t bits = 0;
  switch (random.below(16)) {
    case 0: break;
    case 1: bits = mantissa & ((uint64_t{1} << type.mantissa) - 1); break;
    case 2: {  // 0.5, 0.75, 1, 1.5, 2, 3, 4, 6
      const int exponent = static_cast<int>(random.below(4)) - 1;
      bits = number(type, exponent, random.below(2) << (type.mantissa - 1));
      break;
    }
    default: {
      const auto exponents = static_cast<uint64_t>(last + 11);
      const int exponent = static_cast<int>(random.below(exponents)) - 10;
      bits = number(type, exponent, mantissa);
    }
  }
  return with_sign(type, bits, negative);
}

Memory any_numbers(const Type& type, Random& random, int64_t count,
                   int last = 7) {
  Memory memory(count * type.bytes, type.bytes);
  for (int64_t i = 0; i < count; ++i) {
    put(type, memory, i, any_number(type, random, last));
  }
  return memory;
}

// Infinity, or NaN with no other bit than the one that makes it quiet.
uint64_t special(const Type& type, Random& random) {
  const uint64_t quiet = random.below(2) << (type.mantissa - 1);
  return with_sign(type, type.largest << type.mantissa | quiet,
                   random.below(2) != 0);
}

// -------------------------------------------------------------- binarize

void run_binarize() {
  for (const Type& type : kTypes) {
    for (const int64_t count : {1, 7, 8, 15, 16, 17, 63, 64, 65, 127, 1000}) {
      const std::string name = name_of("binarize", type.name, count);
      if (!wanted(name)) {
        continue;
      }
      Random random(name);
      Memory importance = any_numbers(type, random, count, 0);
      Memory grad = any_numbers(type, random, count);
      Memory mask(count * type.bytes, type.bytes);
      Memory found(2);
      found.as<bool>()[0] = binarize_loops().forward(type.type, importance.as(),
                                                     mask.as(), count);
      for (const double inverse_variance : {1.0, 0.25}) {
        Memory slope(count * type.bytes, type.bytes);
        binarize_loops().backward(type.type, grad.as(), importance.as(),
                                  slope.as(), count, inverse_variance, 0.27572);
        report(name_of(name, "backward", inverse_variance), {&slope});
      }
      put(type, importance, count - 1, type.largest << type.mantissa | 1);
      found.as<bool>()[1] = binarize_loops().forward(type.type, importance.as(),
                                                     importance.as(), count);
      report(name_of(name, "forward"), {&mask, &importance, &found});
    }
  }
}

// ----------------------------------------------------------------- gated

// kUnitWide: of the compute type.
enum class Gates { kShared, kPerInput, kUnit, kUnitWide };
constexpr const char* kGateNames[] = {"shared", "per_input", "unit",
                                      "unit_wide"};

struct Sample {
  const Type& type;
  Activation activation;
  Gates gates;
  bool bare;
  bool hard;  // gates of 0 and 1; NaN and infinity in x where nothing comes
              // from them
  bool innermost;
  int64_t sizes[3];  // N, C, space

  int64_t count() const { return sizes[0] * sizes[1] * sizes[2]; }
  bool unit() const {
    return gates == Gates::kUnit || gates == Gates::kUnitWide;
  }
  const Type& gate_type() const {
    return gates == Gates::kUnit ? type : compute_type(type);
  }
  // As period_of of gated_arguments.h.
  int64_t period() const {
    const int64_t whole = std::lcm(sizes[1], int64_t{16});
    return !innermost || whole > 2048
               ? sizes[1]
               : whole * std::max<int64_t>(1, 512 / whole);
  }
  std::string name() const {
    return name_of(innermost ? "innermost" : "contiguous", type.name,
                   kActivationNames[static_cast<int>(activation)],
                   kGateNames[static_cast<int>(gates)],
                   bare ? "bare" : "bias+baseline", hard ? "hard" : "soft",
                   name_of(sizes[0], sizes[1], sizes[2]));
  }
};

template <typename Function>
void for_samples(const Function& function) {
  // Around the lanes, words and chunks; innermost: periods that are repeated
  // and not, several rows and chunks.
  constexpr int64_t kContiguous[][3] = {{1, 1, 1},  {2, 3, 7},   {1, 2, 15},
                                        {1, 3, 16}, {1, 2, 63},  {2, 2, 64},
                                        {1, 3, 65}, {1, 2, 127}, {1, 2, 600}};
  constexpr int64_t kInnermost[][3] = {{1, 1, 1},   {1, 1, 63},  {2, 3, 65},
                                       {1, 16, 7},  {2, 131, 3}, {1, 300, 3},
                                       {1, 5, 400}, {1, 127, 1}};
  const auto run = [&](bool innermost, const int64_t (&sizes)[3]) {
    for (const Type& type : kTypes) {
      for (int activation = 0; activation < kActivationCount; ++activation) {
        for (int gates = 0; gates < 4; ++gates) {
          if (static_cast<Gates>(gates) == Gates::kUnitWide &&
              compute_type(type).type == type.type) {
            continue;  // the same as kUnit
          }
          for (int kind = 0; kind < 4; ++kind) {
            function(Sample{type,
                            static_cast<Activation>(activation),
                            static_cast<Gates>(gates),
                            kind % 2 == 0,
                            kind / 2 == 0,
                            innermost,
                            {sizes[0], sizes[1], sizes[2]}});
          }
        }
      }
    }
  };
  for (const auto& sizes : kContiguous) {
    run(false, sizes);
  }
  for (const auto& sizes : kInnermost) {
    run(true, sizes);
  }
}

// What a GatedCall points to.
struct GatedInput {
  Memory x;
  Memory gate;
  Memory bias;
  Memory baseline;

  GatedInput(const Sample& sample, Random& random)
      : x(any_numbers(sample.type, random, sample.count())),
        gate(gates(sample, random)),
        bias(channels(sample, random, true)),
        baseline(channels(sample, random, false)) {}

  void fill(const Sample& sample, GatedCall* call) {
    call->type = sample.type.type;
    call->gate_type = sample.gate_type().type;
    call->activation = sample.activation;
    call->shape = {sample.sizes[0],
                   sample.sizes[1],
                   sample.sizes[2],
                   sample.unit(),
                   sample.gates == Gates::kPerInput,
                   sample.innermost};
    call->period = sample.period();
    call->x = x.as();
    call->gate = gate.as();
    call->bias = bias.as();
    call->baseline = baseline.as();
    call->bare = sample.bare;
  }

  // NaN and infinity into x where nothing is computed from them.
  void plant(const Sample& sample, Random& random) {
    const bool copied = sample.activation <= Activation::kRelu6;
    for (int64_t i = 0; i < sample.count(); ++i) {
      if (random.below(4) == 0 && (copied || !is_open(sample, i))) {
        put(sample.type, x, i, special(sample.type, random));
      }
    }
  }

 private:
  bool is_open(const Sample& sample, int64_t i) {
    const int64_t channels = sample.sizes[1];
    const int64_t space = sample.sizes[2];
    const int64_t n = i / (channels * space);
    const int64_t c = sample.innermost ? i % channels : i / space % channels;
    const int64_t at = sample.unit() ? i
                       : sample.gates == Gates::kPerInput
                           ? n * sample.period() + c
                           : c;
    uint64_t bits = 0;
    const int64_t bytes = sample.gate_type().bytes;
    std::memcpy(&bits, gate.as<char>() + at * bytes,
                static_cast<size_t>(bytes));
    return bits != 0;
  }

  static uint64_t any_gate(const Sample& sample, Random& random) {
    const Type& type = sample.gate_type();
    switch (random.below(sample.hard ? 2 : 4)) {
      case 0: return 0;
      case 1: return number(type, 0, 0);
      default: return any_number(type, random, 0);
    }
  }

  // Channel gates are repeated to the period.
  static Memory gates(const Sample& sample, Random& random) {
    const Type& type = sample.gate_type();
    const int64_t row = sample.unit() ? sample.count() : sample.sizes[1];
    const int64_t length = sample.unit() ? sample.count() : sample.period();
    const int64_t rows =
        sample.gates == Gates::kPerInput ? sample.sizes[0] : int64_t{1};
    Memory memory(rows * length * type.bytes, type.bytes);
    for (int64_t n = 0; n < rows; ++n) {
      std::vector<uint64_t> values;
      for (int64_t i = 0; i < row; ++i) {
        values.push_back(any_gate(sample, random));
      }
      for (int64_t i = 0; i < length; ++i) {
        put(type, memory, n * length + i, values[static_cast<size_t>(i % row)]);
      }
    }
    return memory;
  }

  static Memory channels(const Sample& sample, Random& random, bool is_bias) {
    const Type& type = compute_type(sample.type);
    std::vector<uint64_t> values;
    for (int64_t c = 0; c < sample.sizes[1]; ++c) {
      values.push_back(sample.bare ? with_sign(type, 0, is_bias)
                                   : any_number(type, random, 2));
    }
    Memory memory(sample.period() * type.bytes);
    for (int64_t i = 0; i < sample.period(); ++i) {
      put(type, memory, i, values[static_cast<size_t>(i % sample.sizes[1])]);
    }
    return memory;
  }
};

struct ForwardMode {
  const char* name;
  bool in_place;
  bool large;
  int64_t offset;  // elements between a boundary and the result
};

constexpr ForwardMode kForwardModes[] = {
    {"cached", false, false, 1},         {"large", false, true, 0},
    {"large unaligned", false, true, 3}, {"in place", true, false, 1},
    {"in place large", true, true, 1},
};

void forward(const Sample& sample, const ForwardMode& mode) {
  const std::string name = name_of("gated_forward", sample.name(), mode.name);
  if (!wanted(name)) {
    return;
  }
  Random random(name);
  GatedInput input(sample, random);
  if (sample.hard) {
    input.plant(sample, random);
  }
  Memory result(sample.count() * sample.type.bytes,
                mode.offset * sample.type.bytes);
  Memory& y = mode.in_place ? input.x : result;
  GatedForwardCall call{};
  input.fill(sample, &call);
  call.y = y.as();
  call.large = mode.large;
  call.plain_masks =
      sample.innermost && sample.bare && sample.hard && !sample.unit();
  const auto function = sample.innermost ? gated_forward_loops().innermost
                                         : gated_forward_loops().contiguous;
  const int64_t count = sample.innermost
                            ? sample.sizes[0] * call.rows_per_input()
                            : sample.count();
  // As two tasks, which need not meet between two rows.
  function(call, 0, count / 3);
  function(call, count / 3, count);
  report(name, {&y});
}

struct BackwardMode {
  const char* name;
  bool x;
  bool sums;  // of gate and bias
  bool large;
  int64_t offset;
};

constexpr BackwardMode kBackwardModes[] = {
    {"all", true, true, false, 1},
    {"all large", true, true, true, 0},
    {"x", true, false, false, 0},
    {"x large unaligned", true, false, true, 1},
    {"sums", false, true, false, 0},
};

void backward(const Sample& sample, const BackwardMode& mode) {
  const std::string name = name_of("gated_backward", sample.name(), mode.name);
  if (!wanted(name)) {
    return;
  }
  Random random(name);
  GatedInput input(sample, random);
  Memory grad = any_numbers(sample.type, random, sample.count());
  if (sample.hard && !mode.sums) {
    input.plant(sample, random);
  }
  GatedBackwardCall call{};
  input.fill(sample, &call);
  const int64_t tasks = sample.innermost
                            ? sample.sizes[0] * call.chunks_per_input()
                            : sample.sizes[0] * sample.sizes[1];
  const int64_t sums = !mode.sums         ? 0
                       : sample.innermost ? tasks * sample.sizes[1]
                                          : tasks;
  const bool unit_sums = mode.sums && sample.unit();
  Memory grad_x(mode.x ? sample.count() * sample.type.bytes : 0,
                mode.offset * sample.type.bytes);
  Memory grad_gate(unit_sums ? sample.count() * sample.gate_type().bytes : 0);
  Memory gate_sums(sample.unit() ? 0 : sums * 8);
  Memory bias_sums(sums * 8);
  call.grad = grad.as();
  call.grad_x = mode.x ? grad_x.as() : nullptr;
  call.grad_gate = unit_sums ? grad_gate.as() : nullptr;
  call.gate_sums =
      mode.sums && !sample.unit() ? gate_sums.as<double>() : nullptr;
  call.bias_sums = mode.sums ? bias_sums.as<double>() : nullptr;
  call.large = mode.large;
  if (sample.innermost) {
    Memory scratch(2 * call.period * compute_type(sample.type).bytes);
    for (int64_t task = 0; task < tasks; ++task) {
      gated_backward_loops().innermost(call, task, scratch.as());
    }
  } else {
    gated_backward_loops().contiguous(call, 0, tasks / 3);
    gated_backward_loops().contiguous(call, tasks / 3, tasks);
  }
  report(name, {&grad_x, &grad_gate, &gate_sums, &bias_sums});
}

void run_gated() {
  for_samples([](const Sample& sample) {
    for (const ForwardMode& mode : kForwardModes) {
      forward(sample, mode);
    }
    for (const BackwardMode& mode : kBackwardModes) {
      backward(sample, mode);
    }
  });
}

// --------------------------------------------------------------- pooling

void run_pool(const Type& type, const PoolShape& shape, bool hard) {
  const std::string name =
      name_of("adaptive_pool", type.name,
              shape.channel_innermost ? "innermost" : "contiguous",
              name_of(shape.batch, shape.channels, shape.height, shape.width),
              name_of(shape.rows, shape.columns), hard ? "hard" : "soft");
  if (!wanted(name)) {
    return;
  }
  Random random(name);
  const int64_t count = shape.planes() * shape.space();
  Memory x = any_numbers(type, random, count);
  for (int64_t i = 0; hard && i < count; ++i) {
    if (random.below(32) == 0) {
      put(type, x, i, special(type, random));
    }
  }
  std::vector<int64_t> borders;
  const auto put_borders = [&](int64_t size, int64_t cells) {
    for (int64_t i = 0; i < cells; ++i) {
      borders.push_back(cell_begin(i, size, cells));
      borders.push_back(cell_end(i, size, cells));
    }
  };
  put_borders(shape.height, shape.rows);
  put_borders(shape.width, shape.columns);
  const int64_t bytes = compute_type(type).bytes;
  Memory areas(shape.cells() * bytes);
  for (int64_t i = 0; i < shape.cells(); ++i) {
    const int64_t* row = borders.data() + 2 * (i / shape.columns);
    const int64_t* column =
        borders.data() + 2 * (shape.rows + i % shape.columns);
    const int64_t area = (row[1] - row[0]) * (column[1] - column[0]);
    if (bytes == 8) {
      areas.as<double>()[i] = static_cast<double>(area);
    } else {
      areas.as<float>()[i] = static_cast<float>(area);
    }
  }
  Memory y(2 * shape.planes() * shape.cells() * type.bytes, type.bytes);
  const AdaptivePoolCall call{type.type, shape,          x.as(),
                              y.as(),    borders.data(), areas.as()};
  const AdaptiveAvgMaxPool2dLoops& loops = adaptive_avg_max_pool2d_loops();
  if (shape.channel_innermost) {
    const int64_t groups = shape.batch * call.channel_groups();
    loops.innermost(call, 0, groups / 2);
    loops.innermost(call, groups / 2, groups);
  } else {
    Memory scratch(call.scratch_numbers() * bytes);
    loops.contiguous(call, 0, shape.planes() / 3, scratch.as());
    loops.contiguous(call, shape.planes() / 3, shape.planes(), scratch.as());
  }
  report(name, {&y});
}

void run_adaptive_pool() {
  // Maps around the lanes, cells that divide them by halves, otherwise and not
  // at all; grids finer than the map, several groups of rows; around the
  // blocks of channels.
  constexpr int64_t kShapes[][6] = {
      {1, 1, 1, 1, 1, 1},    {2, 3, 8, 8, 4, 4},    {1, 5, 7, 7, 4, 4},
      {1, 2, 32, 32, 4, 4},  {2, 2, 28, 28, 4, 4},  {1, 3, 5, 15, 2, 3},
      {1, 2, 3, 17, 2, 5},   {1, 1, 9, 130, 4, 4},  {1, 2, 2, 3, 5, 7},
      {1, 1, 40, 600, 9, 3}, {1, 2, 1, 3000, 1, 4}, {2, 63, 3, 3, 2, 2},
      {1, 130, 4, 4, 3, 2},  {2, 17, 6, 5, 6, 5},   {1, 71, 2, 2, 1, 1}};
  for (const Type& type : kTypes) {
    for (const auto& s : kShapes) {
      for (const bool innermost : {false, true}) {
        for (const bool hard : {false, true}) {
          run_pool(type, {s[0], s[1], s[2], s[3], s[4], s[5], innermost}, hard);
        }
      }
    }
  }
}

// ------------------------------------------------------------------ bits

// Rows without a bit, with all, with about half and with few of them, `stride`
// words apart; with `shuffled`, in another order than that of the memory.
struct Bits {
  Memory words;
  std::vector<int64_t> order;
  BitMatrix matrix;

  Bits(Random& random, int64_t rows, int64_t width, int64_t stride,
       bool shuffled)
      : words(rows * stride * 8) {
    for (int64_t row = 0; row < rows; ++row) {
      const uint64_t kind = random.below(5);
      for (int64_t w = 0; w < stride; ++w) {
        const uint64_t bits = random.bits();
        words.as<uint64_t>()[row * stride + w] =
            w >= width  ? bits
            : kind == 0 ? 0
            : kind == 1 ? ~uint64_t{0}
            : kind == 2 ? bits & random.bits() & random.bits()
                        : bits;
      }
    }
    for (int64_t row = 0; shuffled && row < rows; ++row) {
      order.push_back(
          static_cast<int64_t>(random.below(static_cast<uint64_t>(rows))));
    }
    matrix = {words.as<uint64_t>(), width, stride,
              shuffled ? order.data() : nullptr};
  }
};

// Memory for the rows and columns of a tile, as TileBuffer has it.
struct Tile {
  Memory row_panel;
  Memory column_panel;
  Memory counts;
  TileMemory memory;

  Tile(int64_t rows, int64_t columns, int64_t width)
      : row_panel(panel_memory(rows, width) * 8),
        column_panel(panel_memory(columns, width) * 8),
        counts(up(rows) * (up(columns) + kBeyond) * 4) {
    memory.counts = counts.as<uint32_t>();
    memory.stride = up(columns) + kBeyond;
    memory.row_panel = row_panel.as<uint64_t>();
    memory.column_panel = column_panel.as<uint64_t>();
  }

  static int64_t up(int64_t value) { return (value + 15) / 16 * 16; }
};

// The sizes of `rows` rows and what may be touched behind them.
Memory sizes_of(const BitMatrix& matrix, int64_t rows) {
  Memory sizes((rows + kBeyond) * 4);
  bit_tile_loops().sizes(matrix, {0, rows}, sizes.as<int32_t>());
  return sizes;
}

void run_tile(int64_t rows, int64_t columns, int64_t width, bool upper) {
  const std::string name =
      name_of("bit_tile", rows, columns, width, upper ? "upper" : "whole");
  if (!wanted(name)) {
    return;
  }
  const BitTileLoops& loops = bit_tile_loops();
  Random random(name);
  Bits a(random, rows, width, width + 3, width % 2 == 0);
  Bits other(random, columns, width, width, width % 3 == 0);
  const Bits& b = upper ? a : other;
  Memory a_sizes = sizes_of(a.matrix, rows);
  Memory b_sizes = sizes_of(b.matrix, columns);
  report(name_of(name, "sizes"), {&a_sizes, &b_sizes});

  Tile tile(rows, columns, width);
  const int64_t stride = tile.memory.stride;
  const int64_t pairs = rows * columns;
  // A second time with the panel of rows that the first call kept.
  for (const char* call : {"differences", "differences again"}) {
    loops.differences(a.matrix, {0, rows}, b.matrix, {0, columns}, upper,
                      tile.memory);
    Memory differences(pairs * 4);
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t first = upper ? r : 0;
      std::copy(tile.memory.counts + r * stride + first,
                tile.memory.counts + r * stride + columns,
                differences.as<uint32_t>() + r * columns + first);
    }
    report(name_of(name, call), {&differences});
  }

  Memory intersections(pairs * 4);
  Memory ious(pairs * 4);
  Memory in_place(pairs * 4);
  Memory sums(6 * 8);
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t first = upper ? r : 0;
    const uint32_t* counts = tile.memory.counts + r * stride + first;
    const int32_t size = a_sizes.as<int32_t>()[r];
    const int32_t* sizes = b_sizes.as<int32_t>() + first;
    const int64_t at = r * columns + first;
    loops.intersections(counts, size, sizes, columns - first,
                        intersections.as<int32_t>() + at);
    loops.ious(counts, size, sizes, columns - first, ious.as<float>() + at);
  }
  report(name_of(name, "intersections"), {&intersections});
  report(name_of(name, "ious"), {&ious});

  // Of the whole tile, and of a part that begins anywhere.
  const int64_t part = std::min(rows, columns) / 3;
  for (const int64_t begin : {int64_t{0}, part}) {
    double* sum = sums.as<double>() + (begin == 0 ? 0 : 3);
    const uint32_t* counts = tile.memory.counts + begin * stride + begin;
    const int32_t* row_sizes = a_sizes.as<int32_t>() + begin;
    const int32_t* column_sizes = b_sizes.as<int32_t>() + begin;
    // Above the diagonal only, all of it there.
    sum[0] = loops.iou_sum(counts, stride, row_sizes,
                           std::min(rows, columns) - begin, column_sizes,
                           columns - begin, true);
    sum[1] = upper ? 0.0
                   : loops.iou_sum(counts, stride, row_sizes, rows - begin,
                                   column_sizes, columns - begin, false);
    sum[2] = loops.iou_sum(counts, stride, row_sizes, 1, column_sizes,
                           columns - begin, false);
  }
  report(name_of(name, "iou_sum"), {&sums});

  for (int64_t r = 0; r < rows; ++r) {
    const int64_t first = upper ? r : 0;
    uint32_t* counts = tile.memory.counts + r * stride + first;
    loops.ious(counts, a_sizes.as<int32_t>()[r], b_sizes.as<int32_t>() + first,
               columns - first, reinterpret_cast<float*>(counts));
    std::copy(counts, counts + columns - first,
              in_place.as<uint32_t>() + r * columns + first);
  }
  report(name_of(name, "ious in place"), {&in_place});

  Memory transposed(pairs * 4);
  loops.transpose(ious.as<uint32_t>(), columns, rows, columns,
                  transposed.as<uint32_t>(), rows);
  report(name_of(name, "transpose"), {&transposed});
}

void run_bit_tile() {
  // Words: around a register and a panel, and around what the parts of a
  // register can count.
  for (const int64_t width : {0,  1,  2,  3,  5,  8,   15,  16,  29,  30,
                              31, 32, 63, 64, 65, 127, 128, 129, 150, 300}) {
    for (const auto& [rows, columns] :
         {std::pair<int64_t, int64_t>{1, 1}, {3, 5}, {4, 8}, {17, 33}}) {
      run_tile(rows, columns, width, false);
    }
    run_tile(7, 7, width, true);
  }
  for (const int64_t width : {3, 130}) {
    run_tile(128, 128, width, false);
    run_tile(65, 127, width, false);
    run_tile(128, 1, width, false);
    run_tile(128, 128, width, true);
    run_tile(63, 63, width, true);
  }
}

void run_class_frequency() {
  for (const int64_t rows : {0, 1, 2, 15, 16, 17, 239, 240, 241, 500}) {
    for (const int64_t words : {1, 2, 3, 7, 8, 9, 63, 64}) {
      for (const bool shuffled : {false, true}) {
        const std::string name = name_of("class_frequency", rows, words,
                                         shuffled ? "ordered" : "plain");
        if (!wanted(name)) {
          continue;
        }
        Random random(name);
        Bits bits(random, rows, words + 2, words + 2, shuffled);
        const int64_t size =
            words * 64 - static_cast<int64_t>(random.below(64));
        Memory counts(size * 8);
        std::fill_n(counts.as<int64_t>(), size, int64_t{1} << 40);
        class_frequency_loops().add(bits.matrix, {0, rows}, 1, words, size,
                                    counts.as<int64_t>());
        report(name, {&counts});
      }
    }
  }
}

constexpr int64_t kPackSizes[] = {0,  1,  7,  8,   31,  32,  33,
                                  63, 64, 65, 127, 128, 129, 1000};

void run_pack_bits() {
  const auto run = [](NumberFormat format, int64_t stride, int64_t size) {
    const std::string name =
        name_of("pack_bits", format.bytes, "bytes",
                format.signed_zero ? "floating" : "integer", "stride", stride,
                "size", size);
    if (!wanted(name)) {
      return;
    }
    Random random(name);
    const int64_t bits = 8 * format.bytes;
    Memory numbers(size * stride * format.bytes, format.bytes);
    for (int64_t i = 0; i < size * stride; ++i) {
      // Nothing, the sign or another single bit, anything.
      const uint64_t one_bit = uint64_t{1}
                               << random.below(static_cast<uint64_t>(bits));
      const uint64_t values[] = {0, uint64_t{1} << (bits - 1), one_bit,
                                 random.bits()};
      std::memcpy(numbers.as<char>() + i * format.bytes,
                  &values[random.below(4)], static_cast<size_t>(format.bytes));
    }
    Memory words((size + 63) / 64 * 8);
    pack_bits_loops().pack(format, numbers.as(), stride, size,
                           words.as<uint64_t>());
    report(name, {&words});
  };
  for (const int64_t size : kPackSizes) {
    for (const int64_t stride : {1, 3}) {
      for (const int64_t bytes : {1, 2, 4, 8}) {
        run({bytes, false}, stride, size);
        if (bytes > 1) {
          run({bytes, true}, stride, size);
        }
      }
    }
  }
}

void run_unpack_bits() {
  for (const int64_t size : kPackSizes) {
    const std::string name = name_of("unpack_bits size", size);
    if (!wanted(name)) {
      continue;
    }
    Random random(name);
    Bits bits(random, 1, (size + 63) / 64, (size + 63) / 64, false);
    Memory bytes(size, 1);
    pack_bits_loops().unpack(bits.matrix.words, size, bytes.as<uint8_t>());
    report(name, {&bytes});
  }
}

}  // namespace
}  // namespace pathways

int main(int count, char** arguments) {
  try {
    pathways::prefix = count > 1 ? arguments[1] : "";
    std::printf("level: %s\n",
                pathways::capability_name(pathways::cpu_capability()));
    pathways::run_binarize();
    pathways::run_gated();
    pathways::run_adaptive_pool();
    pathways::run_bit_tile();
    pathways::run_class_frequency();
    pathways::run_pack_bits();
    pathways::run_unpack_bits();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "driver: %s\n", error.what());
    return 1;
  }
  return 0;
}
