#pragma once

// Checks and small helpers shared by the CPU and CUDA back ends. Every check
// runs before the first call into the tensor library, and the fake kernels in
// pathways/ops/fake.py repeat the words.

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "../core/activations.h"
#include "../core/bits.h"
#include "../core/element_type.h"
#include "../core/gated_shape.h"
#include "../core/pool_shape.h"

namespace pathways {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

namespace detail {
template <typename... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  throw std::runtime_error(text.str());
}
}  // namespace detail

// STD_TORCH_CHECK without the function, file and line that it puts in front of
// the sentence: the message is for the caller of the op, and the fake kernels
// raise the same words.
#define PATHWAYS_CHECK(condition, ...)       \
  do {                                       \
    if (!(condition)) {                      \
      ::pathways::detail::fail(__VA_ARGS__); \
    }                                        \
  } while (false)

inline const char* dtype_name(ScalarType type) {
  switch (type) {
    case ScalarType::Double: return "float64";
    case ScalarType::Float: return "float32";
    case ScalarType::BFloat16: return "bfloat16";
    case ScalarType::Half: return "float16";
    case ScalarType::Bool: return "bool";
    case ScalarType::Byte: return "uint8";
    case ScalarType::Char: return "int8";
    case ScalarType::Short: return "int16";
    case ScalarType::Int: return "int32";
    case ScalarType::Long: return "int64";
    case ScalarType::UInt16: return "uint16";
    case ScalarType::UInt32: return "uint32";
    case ScalarType::UInt64: return "uint64";
    case ScalarType::ComplexHalf: return "complex32";
    case ScalarType::ComplexFloat: return "complex64";
    case ScalarType::ComplexDouble: return "complex128";
    default: return "an unsupported dtype";
  }
}

// Only the types that the checks of floating-point ops and gates let through.
inline ElementType element_type(ScalarType type) {
  switch (type) {
    case ScalarType::Double: return ElementType::kDouble;
    case ScalarType::Half: return ElementType::kHalf;
    case ScalarType::BFloat16: return ElementType::kBFloat16;
    case ScalarType::Bool: return ElementType::kBool;
    default: return ElementType::kFloat;
  }
}

inline bool is_floating(ScalarType type) {
  return type == ScalarType::Float || type == ScalarType::Double ||
         type == ScalarType::BFloat16 || type == ScalarType::Half;
}

inline bool is_integral(ScalarType type) {
  return type == ScalarType::Byte || type == ScalarType::Char ||
         type == ScalarType::Short || type == ScalarType::Int ||
         type == ScalarType::Long;
}

// The type that arithmetic on `type` is done in: float, or double for double.
inline ScalarType compute_type(ScalarType type) {
  return type == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

template <typename Sizes>
std::string shape_name(const Sizes& sizes) {
  std::string text = "[";
  const char* separator = "";
  for (const int64_t size : sizes) {
    text += separator + std::to_string(size);
    separator = ", ";
  }
  return text + "]";
}

inline std::string shape_name(const Tensor& tensor) {
  return shape_name(tensor.sizes());
}

inline std::string device_name(const Tensor& tensor) {
  if (tensor.is_cpu()) {
    return "cpu";
  }
  if (tensor.is_cuda()) {
    return "cuda:" + std::to_string(tensor.get_device());
  }
  return "device type " +
         std::to_string(static_cast<int>(tensor.device().type()));
}

inline void check_same_device(const char* op, const Tensor& a,
                              const char* a_name, const Tensor& b,
                              const char* b_name) {
  PATHWAYS_CHECK(a.device() == b.device(), op, ": ", a_name, " and ", b_name,
                 " must be on the same device (got ", a_name, "=",
                 device_name(a), ", ", b_name, "=", device_name(b), ")");
}

inline void check_floating(const char* op, const Tensor& tensor,
                           const char* name) {
  PATHWAYS_CHECK(
      is_floating(tensor.scalar_type()), op, ": ", name,
      " must be floating point (float64, float32, bfloat16 or float16), got ",
      dtype_name(tensor.scalar_type()));
}

inline Activation parse_activation(const char* op, const std::string& name) {
  for (int32_t i = 0; i < kActivationCount; ++i) {
    if (name == kActivationNames[i]) {
      return static_cast<Activation>(i);
    }
  }
  detail::fail(
      op, ": activation must be one of none, relu, relu6, silu, gelu, got '",
      name, "'");
}

// True when moving dimension 1 to the end gives a contiguous tensor:
// channels_last for four dimensions, and the same idea for any other number.
inline bool is_channel_innermost(const Tensor& x) {
  int64_t expected = 1;
  const auto matches = [&](int64_t dim) {
    if (x.size(dim) != 1 && x.stride(dim) != expected) {
      return false;
    }
    expected *= x.size(dim);
    return true;
  };
  if (!matches(1)) {
    return false;
  }
  for (int64_t dim = x.dim() - 1; dim >= 2; --dim) {
    if (!matches(dim)) {
      return false;
    }
  }
  return matches(0);
}

// What the gated ops need to know about their arguments, once they are checked.
struct GatedPlan {
  Activation activation = Activation::kNone;
  GatedShape shape;
  // x is in one of the two memory orders; otherwise it is made contiguous
  // first.
  bool dense = false;
};

inline void check_channel_vector(const char* op, const Tensor& x,
                                 const std::optional<Tensor>& vector,
                                 const char* name) {
  if (!vector.has_value()) {
    return;
  }
  check_same_device(op, x, "x", *vector, name);
  check_floating(op, *vector, name);
  PATHWAYS_CHECK(vector->dim() == 1 && vector->size(0) == x.size(1), op, ": ",
                 name, " must have shape [C] = [", x.size(1), "], got ",
                 shape_name(*vector));
}

inline GatedPlan plan_gated(const char* op, const Tensor& x, const Tensor& gate,
                            const std::optional<Tensor>& bias,
                            const std::string& activation,
                            const std::optional<Tensor>& baseline) {
  GatedPlan plan;
  check_floating(op, x, "x");
  PATHWAYS_CHECK(x.dim() >= 2, op,
                 ": x must have at least 2 dimensions [N, C, ...], got shape ",
                 shape_name(x));
  plan.activation = parse_activation(op, activation);
  check_same_device(op, x, "x", gate, "gate");
  PATHWAYS_CHECK(
      is_floating(gate.scalar_type()) || gate.scalar_type() == ScalarType::Bool,
      op, ": gate must be floating point or bool, got ",
      dtype_name(gate.scalar_type()));
  plan.shape.batch = x.size(0);
  plan.shape.channels = x.size(1);
  bool same_shape = gate.dim() == x.dim();
  for (int64_t dim = 2; dim < x.dim(); ++dim) {
    plan.shape.space *= x.size(dim);
  }
  for (int64_t dim = 0; same_shape && dim < x.dim(); ++dim) {
    same_shape = gate.size(dim) == x.size(dim);
  }
  const bool per_channel =
      (gate.dim() == 1 && gate.size(0) == plan.shape.channels) ||
      (gate.dim() == 2 && gate.size(1) == plan.shape.channels &&
       (gate.size(0) == 1 || gate.size(0) == plan.shape.batch));
  PATHWAYS_CHECK(
      per_channel || same_shape, op,
      ": gate must have shape [N, C], [1, C], [C] or the shape of x (got x=",
      shape_name(x), ", gate=", shape_name(gate), ")");
  plan.shape.unit = !per_channel;
  plan.shape.per_input =
      per_channel && gate.dim() == 2 && gate.size(0) == plan.shape.batch;
  check_channel_vector(op, x, bias, "bias");
  check_channel_vector(op, x, baseline, "baseline");
  const bool contiguous = x.is_contiguous();
  plan.shape.channel_innermost = !contiguous && is_channel_innermost(x);
  plan.dense = contiguous || plan.shape.channel_innermost;
  return plan;
}

// The check of the in-place op beyond those of the functional one.
inline void check_writable(const char* op, const Tensor& x) {
  for (int64_t dim = 0; dim < x.dim(); ++dim) {
    PATHWAYS_CHECK(x.size(dim) <= 1 || x.stride(dim) != 0, op,
                   ": x must have memory of its own for every element, got "
                   "stride 0 in dimension ",
                   dim);
  }
}

// The checks of the backward op beyond those of the forward.
inline void check_gated_backward(const char* op, const Tensor& grad,
                                 const Tensor& x, const Tensor& gate,
                                 const std::optional<Tensor>& bias,
                                 bool need_gate, bool need_bias) {
  check_same_device(op, x, "x", grad, "grad");
  bool same_shape = grad.dim() == x.dim();
  for (int64_t dim = 0; same_shape && dim < x.dim(); ++dim) {
    same_shape = grad.size(dim) == x.size(dim);
  }
  PATHWAYS_CHECK(
      same_shape && grad.scalar_type() == x.scalar_type(), op,
      ": grad must have the shape and dtype of x (got x=", shape_name(x), " ",
      dtype_name(x.scalar_type()), ", grad=", shape_name(grad), " ",
      dtype_name(grad.scalar_type()), ")");
  PATHWAYS_CHECK(
      !need_gate || is_floating(gate.scalar_type()), op,
      ": gate must be floating point when its gradient is asked for, got ",
      dtype_name(gate.scalar_type()));
  PATHWAYS_CHECK(
      !need_bias || bias.has_value(), op,
      ": bias must be a tensor when its gradient is asked for, got None");
}

inline void check_binarize(const char* op, const Tensor& importance,
                           double sigma, double gamma) {
  check_floating(op, importance, "importance");
  PATHWAYS_CHECK(std::isfinite(sigma) && sigma > 0, op,
                 ": sigma must be positive and finite, got ", sigma);
  PATHWAYS_CHECK(std::isfinite(gamma) && gamma > 0, op,
                 ": gamma must be positive and finite, got ", gamma);
}

inline void check_binarize_backward(const char* op, const Tensor& grad,
                                    const Tensor& importance, double sigma,
                                    double gamma) {
  check_binarize(op, importance, sigma, gamma);
  check_same_device(op, importance, "importance", grad, "grad");
  bool same_shape = grad.dim() == importance.dim();
  for (int64_t dim = 0; same_shape && dim < grad.dim(); ++dim) {
    same_shape = grad.size(dim) == importance.size(dim);
  }
  PATHWAYS_CHECK(
      same_shape && grad.scalar_type() == importance.scalar_type(), op,
      ": grad must have the shape and dtype of importance (got importance=",
      shape_name(importance), " ", dtype_name(importance.scalar_type()),
      ", grad=", shape_name(grad), " ", dtype_name(grad.scalar_type()), ")");
}

// Checks of adaptive_avg_max_pool2d; what its kernels need to know.
inline PoolShape plan_adaptive_pool(const char* op, const Tensor& x,
                                    int64_t height, int64_t width) {
  check_floating(op, x, "x");
  PATHWAYS_CHECK(x.dim() == 4, op, ": x must have shape [N, C, H, W], got ",
                 shape_name(x));
  PATHWAYS_CHECK(x.size(2) > 0 && x.size(3) > 0, op,
                 ": x must have at least one row and one column, got ",
                 shape_name(x));
  PATHWAYS_CHECK(height > 0 && width > 0, op,
                 ": height and width must be at least 1, got ", height, " and ",
                 width);
  return {x.size(0),
          x.size(1),
          x.size(2),
          x.size(3),
          height,
          width,
          !x.is_contiguous() && is_channel_innermost(x)};
}

inline void check_pack_bits(const char* op, const Tensor& mask) {
  const ScalarType type = mask.scalar_type();
  PATHWAYS_CHECK(
      is_floating(type) || is_integral(type) || type == ScalarType::Bool, op,
      ": mask must be bool, integer or floating point, got ", dtype_name(type));
  PATHWAYS_CHECK(mask.dim() == 2, op, ": mask must have shape [N, D], got ",
                 shape_name(mask));
}

// Packed rows: int64 [N, W]. Rows may be strided slices of a wider tensor.
inline void check_words(const char* op, const Tensor& words, const char* name) {
  PATHWAYS_CHECK(words.scalar_type() == ScalarType::Long, op, ": ", name,
                 " must be int64, got ", dtype_name(words.scalar_type()));
  PATHWAYS_CHECK(words.dim() == 2, op, ": ", name,
                 " must have shape [N, ceil(D / 64)], got ", shape_name(words));
  constexpr int64_t kMaxWords = std::numeric_limits<int32_t>::max() / kWordBits;
  PATHWAYS_CHECK(words.size(1) <= kMaxWords, op, ": ", name,
                 " must have at most ", kMaxWords, " words per row, got ",
                 words.size(1));
}

inline void check_words_of_size(const char* op, const Tensor& words,
                                int64_t size) {
  check_words(op, words, "words");
  PATHWAYS_CHECK(size >= 0, op, ": size must not be negative, got ", size);
  PATHWAYS_CHECK(words.size(1) == word_count(size), op, ": words must have ",
                 word_count(size), " words per row for size ", size, ", got ",
                 words.size(1));
}

inline void check_pairwise(const char* op, const Tensor& a, const Tensor& b) {
  check_words(op, a, "a");
  check_words(op, b, "b");
  check_same_device(op, a, "a", b, "b");
  PATHWAYS_CHECK(a.size(1) == b.size(1), op,
                 ": a and b must have the same number of words per row (got a=",
                 shape_name(a), ", b=", shape_name(b), ")");
}

// Numbers in a result by classes, at most: what no machine holds is refused
// before anything is allocated for it.
constexpr int64_t kMaxNumbers = int64_t{1} << 36;
constexpr int64_t kMaxClasses = int64_t{1} << 18;  // their square fits

inline void check_labels(const char* op, const Tensor& words,
                         const Tensor& labels, int64_t num_classes) {
  check_words(op, words, "words");
  check_same_device(op, words, "words", labels, "labels");
  PATHWAYS_CHECK(labels.scalar_type() == ScalarType::Long, op,
                 ": labels must be int64, got ",
                 dtype_name(labels.scalar_type()));
  PATHWAYS_CHECK(labels.dim() == 1 && labels.size(0) == words.size(0), op,
                 ": labels must have shape [N] = [", words.size(0), "], got ",
                 shape_name(labels));
  PATHWAYS_CHECK(num_classes >= 0, op,
                 ": num_classes must not be negative, got ", num_classes);
  PATHWAYS_CHECK(num_classes <= kMaxClasses, op,
                 ": num_classes must be at most ", kMaxClasses, ", got ",
                 num_classes);
}

inline void check_class_frequency(const char* op, const Tensor& words,
                                  const Tensor& labels, int64_t num_classes,
                                  int64_t size) {
  check_labels(op, words, labels, num_classes);
  check_words_of_size(op, words, size);
  PATHWAYS_CHECK(num_classes == 0 || size <= kMaxNumbers / num_classes, op,
                 ": num_classes * size must be at most ", kMaxNumbers, ", got ",
                 num_classes, " * ", size);
}

// The words of `labels` that are refused, wherever the values can be read (CPU
// kernels).
[[noreturn]] inline void refuse_label(const char* op, int64_t label,
                                      int64_t num_classes) {
  detail::fail(op, ": labels must be in [0, num_classes) = [0, ", num_classes,
               "), got ", label);
}

}  // namespace pathways
