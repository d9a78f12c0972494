#pragma once
// FEDformer (Zhou et al., "FEDformer", arXiv:2201.12740), the version with Fourier blocks, as in
// neuralforecast 3.3.0, with the same option names, defaults, parameter names, initial weights and
// outputs. Reproduced deliberately:
//  - Each Fourier block writes its frequencies, whichever they are, to the lowest frequencies of
//  its
//    result, which is read with time and channels mixed (see layers/decomposition/fourier_block.h).
//  - Some projections are unused: keys and values of self-attention, values of cross-attention.
//  - All encoder layers share one block; all decoder layers share one for self-attention and one
//  for
//    cross-attention. named_parameters() lists their weights once, under the first layer's name, as
//    in Python; tied_parameters() has the other names.
//  - The frequencies are not weights. `fourier_index` has them after construction.
//
// WARNING: use_flash_attention REPLACES THE MECHANISM. FEDformer has no softmax attention to speed
// up. use_flash_attention (or attention "flash") replaces the Fourier blocks in all layers by exact
// softmax attention with the same projections. This is a different model with the same parameters
// (the blocks' weights stay, unused); its forecasts differ, and it has to be trained as such.
// attention "standard" is that model with stored scores and the same results as "flash". The
// default, "native", is neuralforecast's model.
//
// The blocks' weights are complex: to(torch::kDouble) makes them complex128.

#include <flash_attention/export.h>
#include <flash_attention/models/forecast_model_base.h>
#include <flash_attention/models/forecast_options.h>
#include <torch/arg.h>
#include <torch/nn/pimpl.h>

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace flash::models {

class DecompositionTransformer;

/// The frequencies of each block, as sorted lists of periods per sequence.
using FourierIndex = std::map<std::string, std::vector<int64_t>>;

/// Options of `FEDformer`.
///
///     FEDformer model(FEDformerOptions(/*h=*/96, /*input_size=*/336).mode_select("low"));
struct FLASH_API FEDformerOptions : ForecastOptions<FEDformerOptions> {
  static constexpr const char* kModelClass = "FEDformer";

  using ForecastOptions::ForecastOptions;

  /// Names of the variables known for past and future. Default: none.
  TORCH_ARG(std::vector<std::string>, futr_exog_list) = {};
  /// Fraction of the past that the decoder sees, in (0, 1). Default: 0.5.
  TORCH_ARG(double, decoder_input_size_multiplier) = 0.5;
  /// Must be "Fourier". Default: "Fourier".
  TORCH_ARG(std::string, version) = "Fourier";
  /// Number of frequencies in a block, at most half its sequence length. Default: 64.
  TORCH_ARG(int64_t, modes) = 64;
  /// "random" for random frequencies, anything else for the lowest. Default: "random".
  TORCH_ARG(std::string, mode_select) = "random";
  /// Width of the layers, at least 8. Default: 128.
  TORCH_ARG(int64_t, hidden_size) = 128;
  /// Probability of dropping an activation. Default: 0.05.
  TORCH_ARG(double, dropout) = 0.05;
  /// Must be 8. Default: 8.
  TORCH_ARG(int64_t, n_head) = 8;
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
  /// Seed for the random frequencies only. neuralforecast draws the same ones. Default: 1.
  TORCH_ARG(int64_t, random_seed) = 1;
  /// The frequencies of the blocks "enc_self", "dec_self", "dec_cross_q" and "dec_cross_kv". If
  /// empty, the constructor fills it according to mode_select. Default: empty.
  TORCH_ARG(FourierIndex, fourier_index) = {};
  /// "native", "standard" or "flash", see above. Default: "native".
  TORCH_ARG(std::string, attention) = "native";
};

class FLASH_API FEDformerImpl : public ForecastModelBase<FEDformerImpl, FEDformerOptions> {
 public:
  /// Throws c10::ValueError if an option is out of range.
  explicit FEDformerImpl(FEDformerOptions options_);

  void reset() override;
  std::shared_ptr<torch::nn::Module> clone(
      const std::optional<torch::Device>& device = std::nullopt) const override;

  /// insample_y [B, input_size, 1]; futr_exog [B, input_size + h, F] if and only if futr_exog_list
  /// is not empty -> [B, h, outputsize_multiplier].
  at::Tensor forward(const WindowsBatch& windows) override;
  using ForecastModel::forward;

  std::map<std::string, std::string> tied_parameters() const override;

 private:
  std::shared_ptr<DecompositionTransformer> network_;
};

TORCH_MODULE(FEDformer);

}  // namespace flash::models
