#pragma once
// iTransformer (Liu et al., "iTransformer", arXiv:2310.06625) as in neuralforecast 3.3.0: its
// option names, defaults, parameter names, initial weights and numbers. Kept on purpose:
//  - `d_layers` and `factor` have no effect; the activation is GELU.
//  - Channel m * N + n of the output is number m of series n. neuralforecast's own quantile losses
//    read it as n * M + m and mix series and quantiles; the losses of losses.h read it right.
//  - The window's mean is detached, its deviation is not.

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

/// Options of `ITransformer`.
///
///     ITransformer model(ITransformerOptions(/*h=*/96, /*input_size=*/96, /*n_series=*/7));
struct ITransformerOptions {
  ITransformerOptions(int64_t h, int64_t input_size, int64_t n_series)
      : h_(h), input_size_(input_size), n_series_(n_series) {}

  /// Sets the three switches below.
  ITransformerOptions& config(const ModelConfig& config) {
    return use_flash_attention(config.use_flash_attention)
        .flash_block_size(config.flash_block_size)
        .gradient_checkpointing(config.gradient_checkpointing);
  }

  /// Steps to forecast.
  TORCH_ARG(int64_t, h);
  /// Steps of the past that the model sees.
  TORCH_ARG(int64_t, input_size);
  /// Series forecast together; each is a token.
  TORCH_ARG(int64_t, n_series);
  /// Names of the variables known of past and future; each gives one more token per series.
  /// Default: none.
  TORCH_ARG(std::vector<std::string>, futr_exog_list) = {};
  /// Width of the layers. Default: 512.
  TORCH_ARG(int64_t, hidden_size) = 512;
  /// Attention heads, each of width hidden_size / n_heads (rounded down). Default: 8.
  TORCH_ARG(int64_t, n_heads) = 8;
  /// Encoder layers. Default: 2.
  TORCH_ARG(int64_t, e_layers) = 2;
  /// Accepted and unused, as in neuralforecast. Default: 1.
  TORCH_ARG(int64_t, d_layers) = 1;
  /// Width of the feed-forward layers. Default: 2048.
  TORCH_ARG(int64_t, d_ff) = 2048;
  /// Accepted and unused, as in neuralforecast. Default: 1.
  TORCH_ARG(int64_t, factor) = 1;
  /// Probability of dropping an activation or an attention weight. Default: 0.1.
  TORCH_ARG(double, dropout) = 0.1;
  /// Normalise each series of each window, and undo it on the forecast. Default: true.
  TORCH_ARG(bool, use_norm) = true;
  /// Numbers per forecast step and series, as many as the loss needs. Default: 1.
  TORCH_ARG(int64_t, outputsize_multiplier) = 1;
  /// See ModelConfig. Default: false.
  TORCH_ARG(bool, use_flash_attention) = false;
  /// See ModelConfig. Default: 64.
  TORCH_ARG(int64_t, flash_block_size) = 64;
  /// See ModelConfig. Default: false.
  TORCH_ARG(bool, gradient_checkpointing) = false;
};

class InvertedEmbeddingImpl;
class TokenEncoderImpl;

class FLASH_API ITransformerImpl : public torch::nn::Cloneable<ITransformerImpl>,
                                   public ForecastModel {
 public:
  /// Throws c10::ValueError where an option is out of range.
  explicit ITransformerImpl(ITransformerOptions options_);

  void reset() override;
  void pretty_print(std::ostream& stream) const override;

  using ForecastModel::forward;
  /// insample_y [B, input_size, N], and futr_exog [B, F, input_size + h, N] or none ->
  /// [B, h, outputsize_multiplier * N].
  torch::Tensor forward(const WindowsBatch& windows) override;

  std::string model_class() const override { return "iTransformer"; }
  void visit_options(OptionVisitor& visitor) override;
  int64_t outputsize_multiplier() const override { return options.outputsize_multiplier(); }
  torch::nn::Module& module() override { return *this; }

  ITransformerOptions options;

 private:
  std::shared_ptr<InvertedEmbeddingImpl> embedding_;
  torch::nn::Linear futr_embedding_{nullptr};
  std::shared_ptr<TokenEncoderImpl> encoder_;
  torch::nn::Linear projector_{nullptr};
};

TORCH_MODULE(ITransformer);

}  // namespace flash::models
