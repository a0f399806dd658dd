// The gradient of binarize for programs without Python; see gated_forward.cpp.

#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "autograd.h"

namespace pathways {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

using Forward = at::Tensor(const at::Tensor&, double, double);
using Backward = at::Tensor(const at::Tensor&, const at::Tensor&, double,
                            double);

class Binarize : public torch::autograd::Function<Binarize> {
 public:
  static at::Tensor forward(AutogradContext* context,
                            const at::Tensor& importance, double sigma,
                            double gamma) {
    context->save_for_backward({importance});
    context->saved_data["sigma"] = sigma;
    context->saved_data["gamma"] = gamma;
    return call_below<Forward>("pathways::binarize", importance, sigma, gamma);
  }

  static variable_list backward(AutogradContext* context,
                                const variable_list& grads) {
    return {detail::call_op<Backward>("pathways::_binarize_backward", grads[0],
                                      context->get_saved_variables()[0],
                                      context->saved_data["sigma"].toDouble(),
                                      context->saved_data["gamma"].toDouble()),
            at::Tensor(), at::Tensor()};
  }
};

at::Tensor binarize_autograd(const at::Tensor& importance, double sigma,
                             double gamma) {
  return needs_gradient(importance)
             ? Binarize::apply(importance, sigma, gamma)
             : call_below<Forward>("pathways::binarize", importance, sigma,
                                   gamma);
}

at::Tensor binarize_backward_autograd(const at::Tensor& grad,
                                      const at::Tensor& importance,
                                      double sigma, double gamma) {
  TORCH_CHECK(!needs_gradient(grad) && !needs_gradient(importance),
              "binarize: the backward pass is not differentiable");
  return call_below<Backward>("pathways::_binarize_backward", grad, importance,
                              sigma, gamma);
}

}  // namespace

TORCH_LIBRARY_IMPL(pathways, Autograd, m) {
  m.impl("binarize", &binarize_autograd);
  m.impl("_binarize_backward", &binarize_backward_autograd);
}

}  // namespace pathways
