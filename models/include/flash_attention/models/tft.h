#pragma once
// TFT (Lim et al., "Temporal Fusion Transformers for Interpretable Multi-horizon Time Series
// Forecasting", arXiv:1912.09363) as in neuralforecast 3.3.0, with the same option names, defaults,
// parameter names, initial weights and outputs. Reproduced deliberately:
//  - Without future variables, the last value of the series is repeated and used as one.
//  - The networks of the static contexts always use ELU, whatever `grn_activation` is. An unknown
//    name means ELU too, with a warning.
//  - The static selection has an unused `lin_c`, which never gets a gradient.
// Not reproduced: `temporal_fusion_decoder.attention._mask`, a constant [1, T, T] in
// neuralforecast's state_dict, which would take as much memory as the scores that flash attention
// avoids.
//
// gradient_checkpointing recomputes three blocks: the selection among past and among future
// variables, the recurrent encoder, and everything from the attention on.

#include <flash_attention/export.h>
#include <flash_attention/models/forecast_model_base.h>
#include <flash_attention/models/forecast_options.h>
#include <torch/arg.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/pimpl.h>

#include <memory>
#include <string>
#include <vector>

namespace flash::models {

/// Options of `TFT`.
///
///     TFT model(TFTOptions(/*h=*/24, /*input_size=*/96).futr_exog_list({"hour", "holiday"}));
struct FLASH_API TFTOptions : ForecastOptions<TFTOptions> {
  static constexpr const char* kModelClass = "TFT";

  using ForecastOptions::ForecastOptions;

  /// Embeddings of the series; the variable selection treats each as a variable. Default: 1.
  TORCH_ARG(int64_t, tgt_size) = 1;
  /// Names of the static variables, one per column of stat_exog. Default: none.
  TORCH_ARG(std::vector<std::string>, stat_exog_list) = {};
  /// Names of the variables known for the past only. Default: none.
  TORCH_ARG(std::vector<std::string>, hist_exog_list) = {};
  /// Names of the variables known for past and future. Default: none.
  TORCH_ARG(std::vector<std::string>, futr_exog_list) = {};
  /// Width of all layers, a multiple of n_head. Default: 128.
  TORCH_ARG(int64_t, hidden_size) = 128;
  /// Attention heads. Default: 4.
  TORCH_ARG(int64_t, n_head) = 4;
  /// Probability of dropping an attention weight in training. Default: 0.
  TORCH_ARG(double, attn_dropout) = 0.0;
  /// Activation of the gated residual networks: "ReLU", "Softplus", "Tanh", "SELU", "LeakyReLU",
  /// "Sigmoid", "GELU" or "ELU". Default: "ELU".
  TORCH_ARG(std::string, grn_activation) = "ELU";
  /// Layers of the recurrent encoders. Default: 1.
  TORCH_ARG(int64_t, n_rnn_layers) = 1;
  /// "lstm" or "gru". Default: "lstm".
  TORCH_ARG(std::string, rnn_type) = "lstm";
  /// Whether all recurrent layers get the same initial state from the static variables.
  /// Default: false.
  TORCH_ARG(bool, one_rnn_initial_state) = false;
  /// Probability of dropping an activation. Default: 0.1.
  TORCH_ARG(double, dropout) = 0.1;
};

class TFTEmbeddingImpl;
class StaticEncoderImpl;
class TemporalEncoderImpl;
class FusionDecoderImpl;

class FLASH_API TFTImpl : public ForecastModelBase<TFTImpl, TFTOptions> {
 public:
  /// Throws c10::ValueError if an option is out of range.
  explicit TFTImpl(TFTOptions options_);

  void reset() override;

  using ForecastModel::forward;
  /// insample_y [B, L, 1]; futr_exog [B, L + h, F], hist_exog [B, L, X] and stat_exog [B, S] if and
  /// only if their lists are not empty -> [B, h, outputsize_multiplier].
  torch::Tensor forward(const WindowsBatch& windows) override;

 private:
  std::shared_ptr<TFTEmbeddingImpl> embedding_;
  std::shared_ptr<StaticEncoderImpl> static_encoder_;
  std::shared_ptr<TemporalEncoderImpl> temporal_encoder_;
  std::shared_ptr<FusionDecoderImpl> decoder_;
  torch::nn::Linear output_{nullptr};
};

TORCH_MODULE(TFT);

}  // namespace flash::models
