#pragma once
// The part of a gated residual network after its first layer, for one block of rows, and the
// gradients that are summed over blocks. Shared by single networks and the networks per variable.

#include <flash_attention/dropout.h>
#include <flash_attention/matrix_product.h>
#include <torch/torch.h>

#include <algorithm>
#include <initializer_list>
#include <optional>

#include "layers/common/gated_rows.h"
#include "layers/common/row_blocks.h"

namespace flash::models {

inline bool needs_backward(std::initializer_list<at::Tensor> tensors) {
  return at::GradMode::is_enabled() &&
         std::any_of(tensors.begin(), tensors.end(),
                     [](const at::Tensor& tensor) { return tensor.requires_grad(); });
}

/// Dropout factors of the rows of one matrix, 0 or 1/(1-p), block by block. Draws one seed.
class DropoutFactors {
 public:
  DropoutFactors(int64_t rows, int64_t width, double p, const at::TensorOptions& options)
      : width_(width) {
    if (p == 0.0) return;
    ones_ = at::ones({std::min(rows, kRowsPerBlock), width}, options);
    memory_.emplace(rows, width, options, /*keep=*/false);
    dropout_.emplace(p);
  }

  /// Undefined without dropout.
  at::Tensor block(const RowBlock& block) const {
    if (!dropout_) return {};
    const at::Tensor factors = memory_->block(block);
    dropout_->apply(ones_.narrow(0, 0, block.count), block.first * width_, factors);
    return factors;
  }

 private:
  int64_t width_;
  at::Tensor ones_;
  std::optional<BlockMatrix> memory_;
  std::optional<BlockedDropout> dropout_;
};

inline double kept_factor(double p) { return p < 1.0 ? 1.0 / (1.0 - p) : 0.0; }

/// hidden = dropout(activated W^T + b) and gate = hidden G^T for one block. The weights W and G are
/// `transposed`.
inline void forward_tail(const at::Tensor& activated, const at::Tensor& hidden,
                         const at::Tensor& gate, const at::Tensor& weight, const at::Tensor& bias,
                         const at::Tensor& gate_weight, const at::Tensor& factors) {
  matrix_product(activated, weight, hidden);
  drop_rows(hidden, bias, factors);
  matrix_product(hidden, gate_weight, gate);
}

/// The gradients of ResidualWeights, summed over blocks of `rows` rows in all.
struct TailGradients {
  at::Tensor weight, gate_weight;   // [D, D], [2D, D]
  at::Tensor bias_sums, norm_sums;  // [pieces, D], [pieces, 4, D]

  TailGradients(int64_t rows, int64_t width, const at::TensorOptions& options)
      : weight(at::zeros({width, width}, options)),
        gate_weight(at::zeros({2 * width, width}, options)),
        bias_sums(row_sums(rows, {width}, options)),
        norm_sums(row_sums(rows, {4, width}, options)) {}

  at::Tensor bias() const { return bias_sums.sum(0); }
  at::Tensor norm_weight() const { return norm_sums.select(1, 0).sum(0); }
  at::Tensor norm_bias() const { return norm_sums.select(1, 1).sum(0); }
  at::Tensor gate_bias() const { return norm_sums.slice(1, 2).flatten(1).sum(0); }
};

/// Backward of forward_tail for a part of a block: from the gradient of `gate` to those of the
/// second layer's result, `to_hidden`, and of `activated`, and the sums over rows. `first` is the
/// index of the first row.
inline void backward_tail(const at::Tensor& to_gate, const at::Tensor& hidden,
                          const at::Tensor& weight, const at::Tensor& gate_weight, double dropout,
                          const at::Tensor& to_hidden, const at::Tensor& to_activated,
                          const TailGradients& sums, int64_t first) {
  matrix_product(to_gate, gate_weight, to_hidden);
  drop_rows_backward(to_hidden, hidden, kept_factor(dropout), sums.bias_sums, first);
  matrix_product(to_hidden, weight, to_activated);
}

/// Adds what a block contributes to the gradients of the weights, after backward_tail of its parts.
inline void add_weight_gradients(const at::Tensor& to_gate, const at::Tensor& hidden,
                                 const at::Tensor& to_hidden, const at::Tensor& activated,
                                 const TailGradients& sums) {
  matrix_product(to_gate.t(), hidden, sums.gate_weight, ProductResult::kAdd);
  matrix_product(to_hidden.t(), activated, sums.weight, ProductResult::kAdd);
}

}  // namespace flash::models
