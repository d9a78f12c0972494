#pragma once
// Autoformer (Wu et al., "Autoformer", arXiv:2106.13008) as in neuralforecast 3.3.0, with the same
// option names, defaults, parameter names, initial weights and outputs. Reproduced deliberately:
//  - Training chooses the delays of the auto-correlation for the whole batch, evaluation for each
//    window. The outputs differ even without dropout.
//  - For a sequence of odd length T the inverse transform has length T - 1, so there are T - 1
//    delays, and the correlations are those of a slightly stretched series.
//
// WARNING: use_flash_attention REPLACES THE MECHANISM. Autoformer has no softmax attention to speed
// up. use_flash_attention (or attention "flash") replaces the auto-correlation in all layers by
// exact softmax attention with the same projections. This is a different model with the same
// parameters; its forecasts differ, and it has to be trained as such. attention "standard" is that
// model with stored scores and the same results as "flash". The default, "native", is
// neuralforecast's model.

#include <flash_attention/export.h>
#include <flash_attention/models/forecast_model_base.h>
#include <flash_attention/models/forecast_options.h>
#include <torch/arg.h>
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
struct FLASH_API AutoformerOptions : ForecastOptions<AutoformerOptions> {
  static constexpr const char* kModelClass = "Autoformer";

  using ForecastOptions::ForecastOptions;

  /// Names of the variables known for past and future. Default: none.
  TORCH_ARG(std::vector<std::string>, futr_exog_list) = {};
  /// Whether the model sees zeros instead of the series. Default: false.
  TORCH_ARG(bool, exclude_insample_y) = false;
  /// Fraction of the past that the decoder sees, in (0, 1). Default: 0.5.
  TORCH_ARG(double, decoder_input_size_multiplier) = 0.5;
  /// Width of the layers. Default: 128.
  TORCH_ARG(int64_t, hidden_size) = 128;
  /// Probability of dropping an activation. Default: 0.05.
  TORCH_ARG(double, dropout) = 0.05;
  /// Number of delays to aggregate: factor * ln(length), rounded down. Default: 3.
  TORCH_ARG(int64_t, factor) = 3;
  /// Attention heads, each of width hidden_size / n_head, rounded down. All heads share one
  /// auto-correlation. Default: 4.
  TORCH_ARG(int64_t, n_head) = 4;
  /// Width of the feed-forward layers. Default: 32.
  TORCH_ARG(int64_t, conv_hidden_size) = 32;
  /// "gelu" or "relu". Default: "gelu".
  TORCH_ARG(std::string, activation) = "gelu";
  /// Layers of the encoder. Default: 2.
  TORCH_ARG(int64_t, encoder_layers) = 2;
  /// Layers of the decoder. Default: 1.
  TORCH_ARG(int64_t, decoder_layers) = 1;
  /// Steps of the moving average that is the trend, odd. Default: 25.
  TORCH_ARG(int64_t, MovingAvg_window) = 25;
  /// "native", "standard" or "flash", see above. Default: "native".
  TORCH_ARG(std::string, attention) = "native";
};

class FLASH_API AutoformerImpl : public ForecastModelBase<AutoformerImpl, AutoformerOptions> {
 public:
  /// Throws c10::ValueError if an option is out of range.
  explicit AutoformerImpl(AutoformerOptions options_);

  void reset() override;
  std::shared_ptr<torch::nn::Module> clone(
      const std::optional<torch::Device>& device = std::nullopt) const override;

  /// insample_y [B, input_size, 1]; futr_exog [B, input_size + h, F] if and only if futr_exog_list
  /// is not empty -> [B, h, outputsize_multiplier].
  at::Tensor forward(const WindowsBatch& windows) override;
  using ForecastModel::forward;

 private:
  std::shared_ptr<DecompositionTransformer> network_;
};

TORCH_MODULE(Autoformer);

}  // namespace flash::models
