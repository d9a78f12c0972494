#pragma once
// The elementwise steps of gated residual networks, on blocks of rows that stay in the cache.
//
// A block is a contiguous [rows, width] matrix, float32 or float64. What a step sums over rows (the
// gradients of biases and of layer norms) it adds to `sums`, one slot per thread, so that any
// number of blocks can be added up and the result does not depend on timing.
//
// Source: Lim et al., "Temporal Fusion Transformers" (arXiv:1912.09363), equations 2 to 5.

#include <ATen/core/Tensor.h>
#include <flash_attention/export.h>
#include <flash_attention/layer_kernels.h>

#include <string>

namespace flash::models {

/// neuralforecast's `grn_activation`, without "GLU", which halves the width and fits no network.
using kernels::GatedActivation;

/// "ReLU", "Softplus", "Tanh", "SELU", "LeakyReLU", "Sigmoid", "ELU" or "GELU". Another name is
/// ELU, too, as in neuralforecast, with a warning. Throws c10::ValueError for "GLU".
FLASH_API GatedActivation gated_activation(const std::string& name);

/// Zeros [threads, ...sizes], to be given to the functions below and then summed over dimension 0.
at::Tensor row_sums(at::IntArrayRef sizes, const at::TensorOptions& options);

/// Whether a backward needs the argument of the activation, since its value does not tell the
/// derivative: GELU falls and rises again.
bool keeps_argument(GatedActivation activation);

/// block <- activation(block + shift[row % P]), shift [P, width]; the block's first row has number
/// `first`. `argument`, if defined, gets the sum where keeps_argument(activation).
void activate_rows(GatedActivation activation, at::Tensor& block, const at::Tensor& shift,
                   int64_t first, const at::Tensor& argument = {});

/// gradient <- gradient * activation'(.), and sums[row % P] += gradient. `forward` is the result of
/// the forward, or its argument where keeps_argument(activation); sums [threads, P, width].
void activate_rows_backward(GatedActivation activation, at::Tensor& gradient,
                            const at::Tensor& forward, at::Tensor& sums, int64_t first);

/// block <- (block + bias) * factors, factors being 0 (dropped) or 1/(1-p), or undefined. What is
/// dropped becomes -0.0 and nothing else does: the backward reads the mask from the signs of zeros.
void drop_rows(at::Tensor& block, const at::Tensor& bias, const at::Tensor& factors);

/// gradient <- gradient * factor, or 0 where `dropped` is -0.0; sums [threads, width] += gradient.
void drop_rows_backward(at::Tensor& gradient, const at::Tensor& dropped, double factor,
                        at::Tensor& sums);

/// out <- x factor + shift: x [rows] with any stride, factor and shift [width].
void outer_rows(at::Tensor& out, const at::Tensor& x, const at::Tensor& factor,
                const at::Tensor& shift);

/// For the gradient of outer_rows' result: sums [threads, 2, width] get those of factor and shift,
/// and x_gradient [rows] += that of x.
void outer_rows_backward(const at::Tensor& gradient, const at::Tensor& x, const at::Tensor& factor,
                         at::Tensor& x_gradient, at::Tensor& sums);

/// LayerNorm(a * sigmoid(b) + skip), where [a | b] = gate + bias, and what belongs to it.
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

/// out [rows, width] <- the rows, each times its factor; added to `out` if there are factors.
void gated_norm_rows(const GatedNorm& block, at::Tensor& out);

/// From the gradient of the result: gate_gradient [rows, 2 width], skip_gradient [rows, width],
/// factors_gradient [rows] (where there are factors), and sums [threads, 4, width] += gradients of
/// scale, shift and the two halves of bias.
void gated_norm_rows_backward(const GatedNorm& block, const at::Tensor& gradient,
                              at::Tensor& gate_gradient, at::Tensor& skip_gradient,
                              at::Tensor& factors_gradient, at::Tensor& sums);

}  // namespace flash::models
