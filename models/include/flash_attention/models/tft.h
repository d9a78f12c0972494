#pragma once
// TFT (Lim et al., "Temporal Fusion Transformers for Interpretable Multi-horizon Time Series
// Forecasting", arXiv:1912.09363) as in neuralforecast 3.3.0: its option names, defaults, parameter
// names, initial weights and numbers. Kept on purpose:
//  - Without future variables the last value of the series, repeated, is one.
//  - The networks of the static contexts use ELU, whatever `grn_activation` says; a name that is
//    not known means ELU, too (with a warning).
//  - The static selection has a `lin_c` that nothing uses: it never gets a gradient.
// Not kept: `temporal_fusion_decoder.attention._mask`, a constant [1, T, T] in neuralforecast's
// state_dict, which would take as much memory as the scores that flash attention does without.

#include <flash_attention/export.h>
#include <flash_attention/models/forecast_model.h>
#include <flash_attention/models/model_config.h>
#include <torch/nn/cloneable.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/pimpl.h>

#include <memory>
#include <string>
#include <vector>

namespace flash::models {

/// Options of `TFT`.
///
///     TFT model(TFTOptions(/*h=*/24, /*input_size=*/96).futr_exog_list({"hour", "holiday"}));
struct TFTOptions {
  TFTOptions(int64_t h, int64_t input_size) : h_(h), input_size_(input_size) {}

  /// Sets the three switches below.
  TFTOptions& config(const ModelConfig& config) {
    return use_flash_attention(config.use_flash_attention)
        .flash_block_size(config.flash_block_size)
        .gradient_checkpointing(config.gradient_checkpointing);
  }

  /// Steps to forecast.
  TORCH_ARG(int64_t, h);
  /// Steps of the past that the model sees.
  TORCH_ARG(int64_t, input_size);
  /// Embeddings of the one series, selected among like variables. Default: 1.
  TORCH_ARG(int64_t, tgt_size) = 1;
  /// Names of the static variables, as many as stat_exog has columns. Default: none.
  TORCH_ARG(std::vector<std::string>, stat_exog_list) = {};
  /// Names of the variables known of the past only. Default: none.
  TORCH_ARG(std::vector<std::string>, hist_exog_list) = {};
  /// Names of the variables known of past and future. Default: none.
  TORCH_ARG(std::vector<std::string>, futr_exog_list) = {};
  /// Width of everything, a multiple of n_head. Default: 128.
  TORCH_ARG(int64_t, hidden_size) = 128;
  /// Attention heads. Default: 4.
  TORCH_ARG(int64_t, n_head) = 4;
  /// Probability of dropping an attention weight in training. Default: 0.
  TORCH_ARG(double, attn_dropout) = 0.0;
  /// Of the gated residual networks: "ReLU", "Softplus", "Tanh", "SELU", "LeakyReLU", "Sigmoid" or
  /// "ELU". Default: "ELU".
  TORCH_ARG(std::string, grn_activation) = "ELU";
  /// Default: 1.
  TORCH_ARG(int64_t, n_rnn_layers) = 1;
  /// "lstm" or "gru". Default: "lstm".
  TORCH_ARG(std::string, rnn_type) = "lstm";
  /// One initial state from the static variables for all recurrent layers. Default: false.
  TORCH_ARG(bool, one_rnn_initial_state) = false;
  /// Probability of dropping an activation. Default: 0.1.
  TORCH_ARG(double, dropout) = 0.1;
  /// Numbers per forecast step, as many as the loss needs. Default: 1.
  TORCH_ARG(int64_t, outputsize_multiplier) = 1;
  /// See ModelConfig. Default: false.
  TORCH_ARG(bool, use_flash_attention) = false;
  /// See ModelConfig. Default: 64.
  TORCH_ARG(int64_t, flash_block_size) = 64;
  /// See ModelConfig; the blocks are the selection among past and among future variables, the
  /// recurrence, and all from the attention on. Default: false.
  TORCH_ARG(bool, gradient_checkpointing) = false;
};

class TFTEmbeddingImpl;
class StaticEncoderImpl;
class TemporalEncoderImpl;
class FusionDecoderImpl;

class FLASH_API TFTImpl : public torch::nn::Cloneable<TFTImpl>, public ForecastModel {
 public:
  /// Throws c10::ValueError where an option is out of range.
  explicit TFTImpl(TFTOptions options_);

  void reset() override;
  void pretty_print(std::ostream& stream) const override;

  using ForecastModel::forward;
  /// insample_y [B, L, 1], and futr_exog [B, L + h, F], hist_exog [B, L, X], stat_exog [B, S]
  /// exactly where their lists are not empty -> [B, h, outputsize_multiplier].
  torch::Tensor forward(const WindowsBatch& windows) override;

  std::string model_class() const override { return "TFT"; }
  void visit_options(OptionVisitor& visitor) override;
  int64_t outputsize_multiplier() const override { return options.outputsize_multiplier(); }
  torch::nn::Module& module() override { return *this; }

  TFTOptions options;

 private:
  std::shared_ptr<TFTEmbeddingImpl> embedding_;
  std::shared_ptr<StaticEncoderImpl> static_encoder_;
  std::shared_ptr<TemporalEncoderImpl> temporal_encoder_;
  std::shared_ptr<FusionDecoderImpl> decoder_;
  torch::nn::Linear output_{nullptr};
};

TORCH_MODULE(TFT);

}  // namespace flash::models
