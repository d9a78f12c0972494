#pragma once
// PatchTST (Nie et al., "A Time Series is Worth 64 Words", arXiv:2211.14730) as in neuralforecast
// 3.3.0: its option names, defaults, parameter names, initial weights and numbers. Kept on purpose:
//  - Inside the encoder it is always batch norm; `batch_normalization` moves it in front of each
//    sublayer, where it replaces the residual stream (so it is no ordinary pre-norm).
//  - The attention output passes two dropouts (drawn here as one, with the same distribution);
//    `fc_dropout` has no effect.
//  - RevIN's deviation (and mean) is detached: the input gradient is not the full derivative.
// Not kept: with `res_attention=false` neuralforecast drops attention weights in eval mode too.

#include <flash_attention/export.h>
#include <flash_attention/models/forecast_model.h>
#include <flash_attention/models/model_config.h>
#include <torch/nn/cloneable.h>
#include <torch/nn/pimpl.h>

#include <memory>
#include <string>

namespace flash::models {

/// Options of `PatchTST`.
///
///     PatchTST model(PatchTSTOptions(/*h=*/96, /*input_size=*/336).use_flash_attention(true));
struct PatchTSTOptions {
  PatchTSTOptions(int64_t h, int64_t input_size) : h_(h), input_size_(input_size) {}

  /// Sets the three switches that all models share.
  PatchTSTOptions& config(const ModelConfig& config) {
    return use_flash_attention(config.use_flash_attention)
        .flash_block_size(config.flash_block_size)
        .gradient_checkpointing(config.gradient_checkpointing);
  }

  /// Steps to forecast.
  TORCH_ARG(int64_t, h);
  /// Steps of the past that the model sees.
  TORCH_ARG(int64_t, input_size);
  /// Default: 3.
  TORCH_ARG(int64_t, encoder_layers) = 3;
  /// Attention heads, each of width hidden_size / n_heads (rounded down). Default: 16.
  TORCH_ARG(int64_t, n_heads) = 16;
  /// Width of the encoder. Default: 128.
  TORCH_ARG(int64_t, hidden_size) = 128;
  /// Width of the feed-forward layers. Default: 256.
  TORCH_ARG(int64_t, linear_hidden_size) = 256;
  /// Probability of dropping an activation. Default: 0.2.
  TORCH_ARG(double, dropout) = 0.2;
  /// Accepted and unused, as in neuralforecast. Default: 0.2.
  TORCH_ARG(double, fc_dropout) = 0.2;
  /// Probability of dropping an output. Default: 0.
  TORCH_ARG(double, head_dropout) = 0.0;
  /// Probability of dropping an attention weight in training. Default: 0.
  TORCH_ARG(double, attn_dropout) = 0.0;
  /// Steps per patch; at most input_size + stride are used. Default: 16.
  TORCH_ARG(int64_t, patch_len) = 16;
  /// Steps between patches. Default: 8.
  TORCH_ARG(int64_t, stride) = 8;
  /// Normalise each window, and undo it on the forecast. Default: true.
  TORCH_ARG(bool, revin) = true;
  /// Give that normalisation a learned factor and shift. Default: false.
  TORCH_ARG(bool, revin_affine) = false;
  /// Subtract the window's last value, not its mean. Default: true.
  TORCH_ARG(bool, revin_subtract_last) = true;
  /// "gelu" or "relu". Default: "gelu".
  TORCH_ARG(std::string, activation) = "gelu";
  /// Add the scores of the layer before (RealFormer, arXiv:2012.11747). Default: true.
  TORCH_ARG(bool, res_attention) = true;
  /// See above: normalise before each sublayer. Default: false.
  TORCH_ARG(bool, batch_normalization) = false;
  /// Train the position embedding. Default: true.
  TORCH_ARG(bool, learn_pos_embed) = true;
  /// Numbers per forecast step, as many as the loss needs. Default: 1.
  TORCH_ARG(int64_t, outputsize_multiplier) = 1;
  /// See ModelConfig. Default: false.
  TORCH_ARG(bool, use_flash_attention) = false;
  /// See ModelConfig. Default: 64.
  TORCH_ARG(int64_t, flash_block_size) = 64;
  /// See ModelConfig. Default: false.
  TORCH_ARG(bool, gradient_checkpointing) = false;
};

class PatchTSTNetworkImpl;

class FLASH_API PatchTSTImpl : public torch::nn::Cloneable<PatchTSTImpl>, public ForecastModel {
 public:
  /// Throws c10::ValueError where an option is out of range.
  explicit PatchTSTImpl(PatchTSTOptions options_);

  void reset() override;
  void pretty_print(std::ostream& stream) const override;

  /// insample_y [B, input_size, 1], float32 or float64 like the parameters -> forecast
  /// [B, h, outputsize_multiplier]. Throws c10::ValueError on another shape, and on exogenous
  /// columns, which the model cannot take.
  at::Tensor forward(const WindowsBatch& windows) override;
  using ForecastModel::forward;

  std::string model_class() const override { return "PatchTST"; }
  void visit_options(OptionVisitor& visitor) override;
  int64_t outputsize_multiplier() const override { return options.outputsize_multiplier(); }
  torch::nn::Module& module() override { return *this; }

  PatchTSTOptions options;

 private:
  std::shared_ptr<PatchTSTNetworkImpl> network_;
};

TORCH_MODULE(PatchTST);

}  // namespace flash::models
