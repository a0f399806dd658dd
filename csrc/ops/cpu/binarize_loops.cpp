#include "binarize_loops.h"

#include "lane_math.h"
#include "lane_types.h"

namespace pathways {
namespace PATHWAYS_VARIANT {
namespace {

template <typename C>
PATHWAYS_LANES Lanes<C> threshold(const Lanes<C>& importance) {
  return select(importance > all(C(0.5)), all(C(1)), all(C(0)));
}

template <typename T, typename C = ComputeType<T>>
bool forward(const T* from, T* to, int64_t count) {
  constexpr int64_t kStep = Lanes<C>::kCount;
  Mask<C> nan = all(C(0)) != all(C(0));
  int64_t i = 0;
  for (; i + kStep <= count; i += kStep) {
    const Lanes<C> importance = load(from + i);
    nan = nan | (importance != importance);
    store(to + i, threshold(importance));
  }
  if (i < count) {
    const Lanes<C> importance = load_part(from + i, count - i);
    nan = nan | (importance != importance);
    store_part(to + i, threshold(importance), count - i);
  }
  return !any(nan);
}

// binarize_derivative of core/quantizer.h: scale / tanh(y) with
// y = (inverse_variance + |2 r - 1|) / 2, and tanh(y) = -e / (2 + e) for
// e = exp(-2 y) - 1.
template <typename C>
PATHWAYS_LANES Lanes<C> slope(const Lanes<C>& importance, C inverse_variance,
                              C scale) {
  const Lanes<C> centred = all(C(2)) * importance - all(C(1));
  const Lanes<C> distance = select(centred < all(C(0)), -centred, centred);
  const Lanes<C> e = expm1_negative(-(all(inverse_variance) + distance));
  const Mask<C> inside = (importance >= all(C(0))) & (importance <= all(C(1)));
  return select(inside, all(-scale) * (all(C(2)) + e) / e, all(C(0)));
}

template <typename T, typename C = ComputeType<T>>
void backward(const T* grad, const T* from, T* to, int64_t count,
              C inverse_variance, C scale) {
  constexpr int64_t kStep = Lanes<C>::kCount;
  int64_t i = 0;
  for (; i + kStep <= count; i += kStep) {
    store(to + i,
          load(grad + i) * slope(load(from + i), inverse_variance, scale));
  }
  if (i < count) {
    const int64_t rest = count - i;
    store_part(to + i,
               load_part(grad + i, rest) *
                   slope(load_part(from + i, rest), inverse_variance, scale),
               rest);
  }
}

bool forward_any(ElementType type, const void* importance, void* mask,
                 int64_t count) {
  return with_type(type, [&](auto tag) {
    using T = typename decltype(tag)::type;
    return forward(static_cast<const T*>(importance), static_cast<T*>(mask),
                   count);
  });
}

void backward_any(ElementType type, const void* grad, const void* importance,
                  void* result, int64_t count, double inverse_variance,
                  double scale) {
  with_type(type, [&](auto tag) {
    using T = typename decltype(tag)::type;
    using C = ComputeType<T>;
    backward(static_cast<const T*>(grad), static_cast<const T*>(importance),
             static_cast<T*>(result), count, static_cast<C>(inverse_variance),
             static_cast<C>(scale));
  });
}

}  // namespace

extern const BinarizeLoops binarize_loops = {&forward_any, &backward_any};

}  // namespace PATHWAYS_VARIANT
}  // namespace pathways
