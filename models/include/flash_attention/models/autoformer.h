#pragma once
// Autoformer (Wu et al., "Autoformer", arXiv:2106.13008) as in neuralforecast 3.3.0: its option
// names, defaults, parameter names, initial weights and numbers. Kept on purpose:
//  - Training chooses the delays of the auto-correlation for the batch as a whole, evaluation for
//    each window: the two give different numbers even without dropout.
//  - A sequence of odd length has one delay less, and correlations of a series stretched by a bit.
//
// ATTENTION, THE SWITCH REPLACES THE MECHANISM. Autoformer has no softmax attention to make faster.
// use_flash_attention (or attention "flash") puts exact softmax attention with the same projections
// in the place of the auto-correlation, in all layers: another model with the same parameters,
// whose forecasts differ, and which must be trained that way. attention "standard" is that other
// model with its scores stored, and gives the numbers of "flash". The default "native" is
// neuralforecast's.

#include <flash_attention/export.h>
#include <flash_attention/models/forecast_model.h>
#include <flash_attention/models/model_config.h>
#include <torch/nn/cloneable.h>
#include <torch/nn/pimpl.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace flash::models {

class DecompositionTransformer;

/// Options of `Autoformer`.
///
///     Autoformer model(AutoformerOptions(/*h=*/96, /*input_size=*/336).dropout(0.1));
struct AutoformerOptions {
  AutoformerOptions(int64_t h, int64_t input_size) : h_(h), input_size_(input_size) {}

  /// Sets the three switches below.
  AutoformerOptions& config(const ModelConfig& config) {
    return use_flash_attention(config.use_flash_attention)
        .flash_block_size(config.flash_block_size)
        .gradient_checkpointing(config.gradient_checkpointing);
  }

  /// Steps to forecast.
  TORCH_ARG(int64_t, h);
  /// Steps of the past that the model sees.
  TORCH_ARG(int64_t, input_size);
  /// Names of the variables known of past and future. Default: none.
  TORCH_ARG(std::vector<std::string>, futr_exog_list) = {};
  /// Hide the series from the model: it sees zeros. Default: false.
  TORCH_ARG(bool, exclude_insample_y) = false;
  /// Share of the past that the decoder sees, between 0 and 1 exclusive. Default: 0.5.
  TORCH_ARG(double, decoder_input_size_multiplier) = 0.5;
  /// Width of the layers. Default: 128.
  TORCH_ARG(int64_t, hidden_size) = 128;
  /// Probability of dropping an activation. Default: 0.05.
  TORCH_ARG(double, dropout) = 0.05;
  /// Delays that are added: factor ln(length), rounded down. Default: 3.
  TORCH_ARG(int64_t, factor) = 3;
  /// Attention heads, each of width hidden_size / n_head (rounded down). The auto-correlation is
  /// the same for all. Default: 4.
  TORCH_ARG(int64_t, n_head) = 4;
  /// Width of the feed-forward layers. Default: 32.
  TORCH_ARG(int64_t, conv_hidden_size) = 32;
  /// "gelu" or "relu". Default: "gelu".
  TORCH_ARG(std::string, activation) = "gelu";
  /// Default: 2.
  TORCH_ARG(int64_t, encoder_layers) = 2;
  /// Default: 1.
  TORCH_ARG(int64_t, decoder_layers) = 1;
  /// Steps that the trend is averaged over, odd. Default: 25.
  TORCH_ARG(int64_t, MovingAvg_window) = 25;
  /// Numbers per forecast step, as many as the loss needs. Default: 1.
  TORCH_ARG(int64_t, outputsize_multiplier) = 1;
  /// The mechanism in the place of attention, see above: "native", "standard" or "flash".
  /// Default: "native".
  TORCH_ARG(std::string, attention) = "native";
  /// True is the same as attention "flash". Replaces the mechanism, see above. Default: false.
  TORCH_ARG(bool, use_flash_attention) = false;
  /// See ModelConfig. Default: 64.
  TORCH_ARG(int64_t, flash_block_size) = 64;
  /// See ModelConfig. Default: false.
  TORCH_ARG(bool, gradient_checkpointing) = false;
};

class FLASH_API AutoformerImpl : public torch::nn::Cloneable<AutoformerImpl>, public ForecastModel {
 public:
  /// Throws c10::ValueError where an option is out of range.
  explicit AutoformerImpl(AutoformerOptions options_);

  void reset() override;
  std::shared_ptr<torch::nn::Module> clone(
      const std::optional<torch::Device>& device = std::nullopt) const override;
  void pretty_print(std::ostream& stream) const override;

  /// insample_y [B, input_size, 1], and futr_exog [B, input_size + h, F] exactly where
  /// futr_exog_list is not empty; float32 or float64 like the parameters -> the forecast
  /// [B, h, outputsize_multiplier]. Throws c10::ValueError on other tensors.
  at::Tensor forward(const WindowsBatch& windows) override;
  using ForecastModel::forward;

  std::string model_class() const override { return "Autoformer"; }
  void visit_options(OptionVisitor& visitor) override;
  int64_t outputsize_multiplier() const override { return options.outputsize_multiplier(); }
  torch::nn::Module& module() override { return *this; }

  AutoformerOptions options;

 private:
  std::shared_ptr<DecompositionTransformer> network_;
};

TORCH_MODULE(Autoformer);

}  // namespace flash::models
