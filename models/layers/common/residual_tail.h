#pragma once
// The part of a gated residual network after its first layer, for one block of rows, and the
// gradients that are summed over blocks. Shared by single networks and the networks per variable.

#include <flash_attention/dropout.h>
#include <flash_attention/matrix_product.h>
#include <torch/torch.h>

#include <algorithm>
#include <initializer_list>

#include "layers/common/gated_rows.h"

namespace flash::models {

inline bool needs_backward(std::initializer_list<at::Tensor> tensors) {
  return at::GradMode::is_enabled() &&
         std::any_of(tensors.begin(), tensors.end(),
                     [](const at::Tensor& tensor) { return tensor.requires_grad(); });
}

/// Dropout factors of a block, 0 or 1/(1-p); undefined without dropout.
inline at::Tensor dropout_factors(const at::Tensor& ones, int64_t rows, double p) {
  return p > 0.0 ? flash::dropout(ones.narrow(0, 0, rows), p, /*training=*/true) : at::Tensor();
}

inline double kept_factor(double p) { return p < 1.0 ? 1.0 / (1.0 - p) : 0.0; }

/// The transpose of a weight, contiguous, as the right-hand side of the products of all blocks.
inline at::Tensor transposed(const at::Tensor& weight) {
  return weight.transpose(-2, -1).contiguous();
}

/// hidden = dropout(activated W^T + b) and gate = hidden G^T for one block. The weights W and G are
/// `transposed`.
inline void forward_tail(const at::Tensor& activated, at::Tensor hidden, const at::Tensor& gate,
                         const at::Tensor& weight, const at::Tensor& bias,
                         const at::Tensor& gate_weight, const at::Tensor& factors) {
  matrix_product(activated, weight, hidden);
  drop_rows(hidden, bias, factors);
  matrix_product(hidden, gate_weight, gate);
}

/// The gradients of ResidualWeights, summed over blocks.
struct TailGradients {
  at::Tensor weight, gate_weight;   // [D, D], [2D, D]
  at::Tensor bias_sums, norm_sums;  // [threads, D], [threads, 4, D]

  TailGradients(int64_t width, const at::TensorOptions& options)
      : weight(at::zeros({width, width}, options)),
        gate_weight(at::zeros({2 * width, width}, options)),
        bias_sums(row_sums({width}, options)),
        norm_sums(row_sums({4, width}, options)) {}

  at::Tensor bias() const { return bias_sums.sum(0); }
  at::Tensor norm_weight() const { return norm_sums.select(1, 0).sum(0); }
  at::Tensor norm_bias() const { return norm_sums.select(1, 1).sum(0); }
  at::Tensor gate_bias() const { return norm_sums.slice(1, 2).flatten(1).sum(0); }
};

/// Backward of forward_tail: from the gradient of `gate` to that of `activated`. `scratch` is a
/// block of rows.
inline void backward_tail(const at::Tensor& gate_gradient, const at::Tensor& hidden,
                          const at::Tensor& activated, const at::Tensor& weight,
                          const at::Tensor& gate_weight, double dropout, at::Tensor scratch,
                          const at::Tensor& activated_gradient, TailGradients& sums) {
  matrix_product(gate_gradient.t(), hidden, sums.gate_weight, ProductResult::kAdd);
  matrix_product(gate_gradient, gate_weight, scratch);
  drop_rows_backward(scratch, hidden, kept_factor(dropout), sums.bias_sums);
  matrix_product(scratch.t(), activated, sums.weight, ProductResult::kAdd);
  matrix_product(scratch, weight, activated_gradient);
}

}  // namespace flash::models
