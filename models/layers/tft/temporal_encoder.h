#pragma once
// TFT up to its attention: past and future variables, selected and passed through recurrent layers
// (arXiv:1912.09363, section 4.5.1).

#include <torch/nn/cloneable.h>

#include "layers/tft/static_encoder.h"

namespace flash::models {

/// Sizes and switches of `TemporalEncoder`.
struct TemporalEncoderOptions {
  int64_t past_variables;
  int64_t future_variables;
  int64_t hidden_size;
  RecurrentCell cell;
  int64_t rnn_layers;
  double dropout;
  GatedActivation activation;
  bool recompute;  ///< checkpoints each selection and the recurrent part
};

class TemporalEncoderImpl : public torch::nn::Cloneable<TemporalEncoderImpl> {
 public:
  explicit TemporalEncoderImpl(TemporalEncoderOptions options);
  void reset() override;

  /// past [L, B, past_variables], future [h, B, future_variables] -> [(L + h) B, hidden_size], row
  /// t B + b for step t of window b.
  torch::Tensor forward(const torch::Tensor& past, const torch::Tensor& future,
                        const ScalarVectors& past_embedding, const ScalarVectors& future_embedding,
                        const StaticContext& context);

 private:
  TemporalEncoderOptions options_;
  VariableSelection past_selection_{nullptr}, future_selection_{nullptr};
  Recurrent past_recurrence_{nullptr}, future_recurrence_{nullptr};
  GatedLinearUnit gate_{nullptr};
  torch::nn::LayerNorm norm_{nullptr};
};
TORCH_MODULE(TemporalEncoder);

}  // namespace flash::models
