#pragma once
// Linear layers for autograd functions that process rows in blocks.

#include <ATen/ATen.h>
#include <flash_attention/matrix_product.h>

#include <algorithm>

#include "layers/common/linear.h"
#include "layers/common/row_blocks.h"

namespace flash::models {

/// out = x weight^T + bias: x [rows, in] -> out [rows, out]
inline void linear_into(const at::Tensor& x, const LinearWeights& layer, const at::Tensor& out) {
  if (layer.bias.defined()) {
    matrix_product_with_bias(x, layer.weight.t(), layer.bias.contiguous(), out);
  } else {
    matrix_product(x, layer.weight.t(), out);
  }
}

/// The gradients of a layer's weight and bias, summed over blocks.
class LinearGradients {
 public:
  explicit LinearGradients(const LinearWeights& layer)
      : LinearGradients(layer.weight.size(0), layer.weight.size(1), layer.weight.options(),
                        layer.bias.defined()) {}

  LinearGradients(int64_t out, int64_t in, const at::TensorOptions& options, bool has_bias = true)
      : weight_(at::empty({out, in}, options)),
        bias_(has_bias ? at::zeros({out}, options) : at::Tensor()) {}

  /// Adds the contribution of one block, from the gradient of the layer's result and its input x,
  /// `step` rows at a time. If blocks begin at multiples of it, sums do not depend on their size.
  void add(const at::Tensor& gradient, const at::Tensor& x, int64_t step = kRowsPerBlock) {
    for (int64_t first = 0; first < x.size(0); first += step) {
      const int64_t rows = std::min(step, x.size(0) - first);
      const at::Tensor g = gradient.narrow(0, first, rows);
      matrix_product(g.t(), x.narrow(0, first, rows), weight_,
                     any_ ? ProductResult::kAdd : ProductResult::kReplace);
      if (bias_.defined()) bias_.add_(g.sum(0));
      any_ = true;
    }
  }

  at::Tensor weight() const { return any_ ? weight_ : at::zeros_like(weight_); }
  /// Undefined if the layer has none.
  const at::Tensor& bias() const { return bias_; }

 private:
  at::Tensor weight_, bias_;
  bool any_ = false;  // without rows, the weight is not written
};

}  // namespace flash::models
