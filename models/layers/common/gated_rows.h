#pragma once
// The elementwise steps of gated residual networks, on blocks of rows that stay in the cache.
//
// A block is a contiguous [rows, width] matrix, float32 or float64. Sums over rows (the gradients
// of biases and layer norms) are added to `sums`, which has one slot per piece of rows
// (row_blocks.h), so that the result does not depend on the number of threads. There, `first` is
// the index of the block's first row, a multiple of kRowsPerPiece.
//
// Source: Lim et al., "Temporal Fusion Transformers" (arXiv:1912.09363), equations 2 to 5.

#include <ATen/core/Tensor.h>
#include <flash_attention/export.h>
#include <flash_attention/layer_kernels.h>

#include <string>

namespace flash::models {

/// neuralforecast's `grn_activation` without "GLU", which halves the width and therefore fits no
/// network.
using kernels::GatedActivation;

/// "ReLU", "Softplus", "Tanh", "SELU", "LeakyReLU", "Sigmoid", "ELU" or "GELU". Any other name
/// means ELU, with a warning, as in neuralforecast. Throws c10::ValueError for "GLU".
FLASH_API GatedActivation gated_activation(const std::string& name);

/// Zeros [pieces, ...sizes] for the functions below and `rows` rows in all, to be summed over
/// dimension 0 in the end.
at::Tensor row_sums(int64_t rows, at::IntArrayRef sizes, const at::TensorOptions& options);

/// Whether a backward needs the argument of the activation, because the derivative is not a
/// function of its value: GELU is not monotonic.
bool keeps_argument(GatedActivation activation);

/// block <- activation(block + shift[row % P]), shift [P, width]; `first` is the index of the
/// block's first row. If keeps_argument(activation) and `argument` is defined, it receives the sum.
void activate_rows(GatedActivation activation, const at::Tensor& block, const at::Tensor& shift,
                   int64_t first, const at::Tensor& argument = {});

/// gradient <- gradient * activation'(.), and sums [pieces, width] += gradient. `forward` is the
/// result of the forward, or its argument if keeps_argument(activation).
void activate_rows_backward(GatedActivation activation, const at::Tensor& gradient,
                            const at::Tensor& forward, const at::Tensor& sums, int64_t first);

/// The gradient of a shift [P, width] from those of rows, where row r belongs to shift r % P.
class ShiftGradient {
 public:
  ShiftGradient(const at::Tensor& shift, int64_t rows);

  /// The `sums` of activate_rows_backward, which are the gradient of a single shift.
  const at::Tensor& pieces() const { return pieces_; }
  /// Adds the gradients of a block, where there are several shifts. Must be called for each block,
  /// in the order of rows; `first` is the index of its first row.
  void add(const at::Tensor& gradient, int64_t first);
  at::Tensor sum() const;

 private:
  at::Tensor pieces_, sums_;
};

/// block <- (block + bias) * factors. A factor is 0 (dropped) or 1/(1-p); undefined factors mean 1.
/// Dropped elements become -0.0, and no others do, so that the backward can read the mask from
/// them.
void drop_rows(const at::Tensor& block, const at::Tensor& bias, const at::Tensor& factors);

/// gradient <- gradient * factor, or 0 where `dropped` is -0.0; sums [pieces, width] += gradient.
/// `dropped` is the result of drop_rows.
void drop_rows_backward(const at::Tensor& gradient, const at::Tensor& dropped, double factor,
                        const at::Tensor& sums, int64_t first);

/// out <- x factor + shift: x [rows] with any stride, factor and shift [width].
void outer_rows(const at::Tensor& out, const at::Tensor& x, const at::Tensor& factor,
                const at::Tensor& shift);

/// Backward of outer_rows: sums [pieces, 2, width] += gradients of factor and shift, and
/// x_gradient [rows] += gradient of x.
void outer_rows_backward(const at::Tensor& gradient, const at::Tensor& x, const at::Tensor& factor,
                         const at::Tensor& x_gradient, const at::Tensor& sums, int64_t first);

/// The arguments of LayerNorm(a * sigmoid(b) + skip), where [a | b] = gate + bias.
struct GatedNorm {
  at::Tensor gate;        ///< [rows, 2 width], before the bias is added
  at::Tensor bias;        ///< [2 width]
  at::Tensor skip;        ///< [rows, width]
  at::Tensor scale;       ///< [width], the norm's weight
  at::Tensor shift;       ///< [width], the norm's bias
  at::Tensor statistics;  ///< [rows, 2]: mean and reciprocal deviation, written by the forward
  /// [rows], any stride: factors on the rows of the result, or undefined for 1.
  at::Tensor row_factors = {};
};

/// Without row factors out [rows, width] <- the result; with them out += the result, each row times
/// its factor.
void gated_norm_rows(const GatedNorm& block, const at::Tensor& out);

/// Backward of gated_norm_rows. Writes gate_gradient [rows, 2 width], skip_gradient [rows, width]
/// and, with row factors, factors_gradient [rows]; sums [pieces, 4, width] += gradients of scale,
/// shift and the two halves of bias.
void gated_norm_rows_backward(const GatedNorm& block, const at::Tensor& gradient,
                              const at::Tensor& gate_gradient, const at::Tensor& skip_gradient,
                              const at::Tensor& factors_gradient, const at::Tensor& sums,
                              int64_t first);

}  // namespace flash::models
