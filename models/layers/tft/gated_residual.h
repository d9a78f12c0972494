#pragma once
// The gated residual networks of TFT as differentiable functions. They process rows in blocks, so
// that intermediate results stay in the cache between two matrix products, and keep for the
// backward only the inputs of the products, not gates, norms, activations or dropout masks.
//
// All tensors have the same dtype, float32 or float64, and contiguous rows. Differentiable once: a
// second derivative throws c10::NotImplementedError. Dropout draws one seed from torch's CPU
// generator, `selected_variables` one per variable. Results do not depend on the number of threads.
//
// Source: Lim et al., "Temporal Fusion Transformers" (arXiv:1912.09363), sections 4.1 and 4.2.

#include <ATen/core/Tensor.h>
#include <flash_attention/export.h>

#include "layers/common/gated_rows.h"

namespace flash::models {

/// LayerNorm(GLU(x W^T + b) + skip), epsilon 1e-3. x and skip [R, D], W [2D, D] -> [R, D].
struct GateWeights {
  at::Tensor weight, bias;            ///< [2D, D], [2D]
  at::Tensor norm_weight, norm_bias;  ///< [D]
};
at::Tensor gated_norm(const at::Tensor& x, const at::Tensor& skip, const GateWeights& gate);

/// The parameters of a gated residual network after its first layer: activation, W, dropout, gate
/// and norm. For `selected_variables` each has a leading dimension, one entry per variable.
struct ResidualWeights {
  at::Tensor weight, bias;  ///< [D, D], [D]: neuralforecast's lin_i
  GateWeights gate;
};

/// x [R, D] -> gate(dropout(weight activation(x first^T + shift[row % P])) + x) [R, D]; `first`
/// [D, D] and `shift` [P, D] are lin_a, a context included.
FLASH_API at::Tensor gated_residual(const at::Tensor& x, const at::Tensor& first,
                                    const at::Tensor& shift, const ResidualWeights& weights,
                                    GatedActivation activation, double dropout);

/// The embedding of n scalar variables and the layer after it, all [n, D]. A variable x is embedded
/// as x v + b, so the skip connection and the first layer A (x v + b) + a are both linear in x. No
/// row needs a product with A, and embeddings are not stored.
struct ScalarEmbedding {
  at::Tensor factor, shift;              ///< v and b
  at::Tensor first_factor, first_shift;  ///< A v and A b + a
};

/// sum_j selection[r, j] * GRN_j(x[r, j]) with x and selection [R, n] -> [R, D].
FLASH_API at::Tensor selected_variables(const at::Tensor& x, const at::Tensor& selection,
                                        const ScalarEmbedding& embedding,
                                        const ResidualWeights& weights, GatedActivation activation,
                                        double dropout);

/// activation(x first + shift[row % P]) second^T: x [R, n], first [n, D], shift [P, D],
/// second [m, D] -> [R, m]. Keeps only x for the backward.
FLASH_API at::Tensor scalar_network(const at::Tensor& x, const at::Tensor& first,
                                    const at::Tensor& shift, const at::Tensor& second,
                                    GatedActivation activation);

}  // namespace flash::models
