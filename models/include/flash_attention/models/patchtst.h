#pragma once
// PatchTST (Nie et al., "A Time Series is Worth 64 Words", arXiv:2211.14730) as in neuralforecast
// 3.3.0, with the same option names, defaults, parameter names, initial weights and outputs.
// Reproduced deliberately:
//  - The encoder always uses batch norm. `batch_normalization` moves it before each sublayer, where
//    it also normalises the residual stream, unlike an ordinary pre-norm.
//  - The attention output passes two dropouts (drawn here as one, with the same distribution).
//    `fc_dropout` has no effect.
//  - RevIN's mean and deviation are detached, so the gradient of the input is not the full one.
// Not reproduced: with `res_attention=false`, neuralforecast drops attention weights in eval mode
// too.

#include <flash_attention/export.h>
#include <flash_attention/models/forecast_model_base.h>
#include <flash_attention/models/forecast_options.h>
#include <torch/arg.h>
#include <torch/nn/pimpl.h>

#include <memory>
#include <string>

namespace flash::models {

/// Options of `PatchTST`.
///
///     PatchTST model(PatchTSTOptions(/*h=*/96, /*input_size=*/336).use_flash_attention(true));
struct FLASH_API PatchTSTOptions : ForecastOptions<PatchTSTOptions> {
  static constexpr const char* kModelClass = "PatchTST";

  using ForecastOptions::ForecastOptions;

  /// Layers of the encoder. Default: 3.
  TORCH_ARG(int64_t, encoder_layers) = 3;
  /// Attention heads, each of width hidden_size / n_heads, rounded down. Default: 16.
  TORCH_ARG(int64_t, n_heads) = 16;
  /// Width of the encoder. Default: 128.
  TORCH_ARG(int64_t, hidden_size) = 128;
  /// Width of the feed-forward layers. Default: 256.
  TORCH_ARG(int64_t, linear_hidden_size) = 256;
  /// Probability of dropping an activation. Default: 0.2.
  TORCH_ARG(double, dropout) = 0.2;
  /// Has no effect, as in neuralforecast. Default: 0.2.
  TORCH_ARG(double, fc_dropout) = 0.2;
  /// Probability of dropping an output. Default: 0.
  TORCH_ARG(double, head_dropout) = 0.0;
  /// Probability of dropping an attention weight in training. Default: 0.
  TORCH_ARG(double, attn_dropout) = 0.0;
  /// Steps per patch; at most input_size + stride are used. Default: 16.
  TORCH_ARG(int64_t, patch_len) = 16;
  /// Steps between patches. Default: 8.
  TORCH_ARG(int64_t, stride) = 8;
  /// Whether to normalise each window and undo that on the forecast (RevIN). Default: true.
  TORCH_ARG(bool, revin) = true;
  /// Whether RevIN has a learned factor and shift. Default: false.
  TORCH_ARG(bool, revin_affine) = false;
  /// Whether RevIN subtracts the window's last value instead of its mean. Default: true.
  TORCH_ARG(bool, revin_subtract_last) = true;
  /// "gelu" or "relu". Default: "gelu".
  TORCH_ARG(std::string, activation) = "gelu";
  /// Whether to add the scores of the previous layer (RealFormer, arXiv:2012.11747). Default: true.
  TORCH_ARG(bool, res_attention) = true;
  /// Whether to normalise before each sublayer, see above. Default: false.
  TORCH_ARG(bool, batch_normalization) = false;
  /// Whether to train the position embedding. Default: true.
  TORCH_ARG(bool, learn_pos_embed) = true;
};

class PatchTSTNetworkImpl;

class FLASH_API PatchTSTImpl : public ForecastModelBase<PatchTSTImpl, PatchTSTOptions> {
 public:
  /// Throws c10::ValueError if an option is out of range.
  explicit PatchTSTImpl(PatchTSTOptions options_);

  void reset() override;

  /// insample_y [B, input_size, 1] -> [B, h, outputsize_multiplier]. Throws c10::ValueError for
  /// exogenous columns, which the model does not use.
  at::Tensor forward(const WindowsBatch& windows) override;
  using ForecastModel::forward;

 private:
  std::shared_ptr<PatchTSTNetworkImpl> network_;
};

TORCH_MODULE(PatchTST);

}  // namespace flash::models
