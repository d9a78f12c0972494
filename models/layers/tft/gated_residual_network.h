#pragma once
// The modules that hold the parameters of gated_residual.h under neuralforecast's names.

#include <torch/nn/cloneable.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/normalization.h>

#include <optional>
#include <string>
#include <vector>

#include "layers/common/norms.h"
#include "layers/tft/gated_residual.h"

namespace flash::models {

inline constexpr double kTftNormEpsilon = 1e-3;

/// One linear layer `lin` to twice the width: values and gates.
class GatedLinearUnitImpl : public torch::nn::Cloneable<GatedLinearUnitImpl> {
 public:
  GatedLinearUnitImpl(int64_t input_size, int64_t output_size);
  void reset() override;
  const torch::nn::Linear& linear() const { return linear_; }

 private:
  int64_t input_size_, output_size_;
  torch::nn::Linear linear_{nullptr};
};
TORCH_MODULE(GatedLinearUnit);

/// Gated linear unit, residual connection and layer norm, outside a gated residual network.
GateWeights gate_weights(const GatedLinearUnit& gate, const torch::nn::LayerNorm& norm);

/// An optional layer norm called `ln`.
class OptionalLayerNormImpl : public torch::nn::Cloneable<OptionalLayerNormImpl> {
 public:
  /// Over `features` elements; if absent, the identity.
  explicit OptionalLayerNormImpl(std::optional<int64_t> features);
  void reset() override;
  torch::Tensor forward(const torch::Tensor& x) {
    return norm_.is_empty() ? x : layer_normalized(x, *norm_);
  }
  const torch::nn::LayerNorm& norm() const { return norm_; }

 private:
  std::optional<int64_t> features_;
  torch::nn::LayerNorm norm_{nullptr};
};
TORCH_MODULE(OptionalLayerNorm);

/// Sizes and switches of `GatedResidualNetwork`.
struct GatedResidualNetworkOptions {
  int64_t input_size;
  int64_t hidden_size;
  std::optional<int64_t> output_size = std::nullopt;  ///< default: hidden_size, no projection
  bool context = false;
  double dropout = 0.0;
  GatedActivation activation = GatedActivation::kElu;
};

/// GRN(x; c) = LayerNorm(GLU(dropout(lin_i f(lin_a x + lin_c c))) + skip).
class GatedResidualNetworkImpl : public torch::nn::Cloneable<GatedResidualNetworkImpl> {
 public:
  explicit GatedResidualNetworkImpl(GatedResidualNetworkOptions options);
  void reset() override;

  /// x [R, hidden_size] -> the same shape, for a network without output_size. Row r belongs to row
  /// r % P of context [P, hidden_size].
  torch::Tensor forward(const torch::Tensor& x, const torch::Tensor& context = {});

  /// For a network with output_size n and without dropout: n scalars x [R, n], each embedded as
  /// x vectors + biases (both [n, hidden_size]) -> [R, n]. Without dropout, second layer and gate
  /// are one matrix, and so are embedding and first layer.
  torch::Tensor forward_scalars(const torch::Tensor& x, const torch::Tensor& vectors,
                                const torch::Tensor& biases, const torch::Tensor& context);

  ResidualWeights weights() const;
  /// All parameters, except those of the context's layer if there is no context.
  std::vector<torch::Tensor> trained_parameters(bool context) const;
  const torch::nn::Linear& first() const { return first_; }

 private:
  /// The first layer's bias, plus the context's part if there is a context.
  torch::Tensor shift(const torch::Tensor& bias, const torch::Tensor& context);

  GatedResidualNetworkOptions options_;
  OptionalLayerNorm norm_{nullptr};
  torch::nn::Linear first_{nullptr}, context_{nullptr}, second_{nullptr}, projection_{nullptr};
  GatedLinearUnit gate_{nullptr};
};
TORCH_MODULE(GatedResidualNetwork);

}  // namespace flash::models
