#pragma once
// Linear layers for autograd functions that process rows in blocks.

#include <ATen/ATen.h>
#include <flash_attention/matrix_product.h>

#include "layers/common/linear.h"

namespace flash::models {

/// out = x weight^T + bias: x [rows, in] -> out [rows, out]
inline void linear_into(const at::Tensor& x, const LinearWeights& layer, at::Tensor out) {
  if (layer.bias.defined()) out.copy_(layer.bias.expand_as(out));
  matrix_product(x, layer.weight.t(), out,
                 layer.bias.defined() ? ProductResult::kAdd : ProductResult::kReplace);
}

/// The gradients of a layer's weight and bias, summed over blocks.
struct LinearGradients {
  at::Tensor weight, bias;

  explicit LinearGradients(const LinearWeights& layer)
      : weight(at::zeros_like(layer.weight)),
        bias(layer.bias.defined() ? at::zeros_like(layer.bias) : at::Tensor()) {}

  /// Adds the contribution of one block, from the gradient of the layer's result and its input x.
  void add(const at::Tensor& gradient, const at::Tensor& x) {
    matrix_product(gradient.t(), x, weight, ProductResult::kAdd);
    if (bias.defined()) bias.add_(gradient.sum(0));
  }
};

}  // namespace flash::models
