#pragma once
// FEDformer (Zhou et al., "FEDformer", arXiv:2201.12740) as in neuralforecast 3.3.0, the version
// with Fourier blocks: its option names, defaults, parameter names, initial weights and numbers.
// Kept on purpose:
//  - Each Fourier block writes the frequencies it looks at, whichever they are, to the lowest ones
//    of its result, which is read with time and channels mixed (see
//    layers/decomposition/fourier_block.h).
//  - Some projections have no use: keys and values of self-attention, values of cross-attention.
//  - All encoder layers share one block, all decoder layers one block for self- and one for
//    cross-attention. Their weights are in named_parameters() once, under the first layer's name,
//    as in Python; tied_parameters() has the other names.
//  - The frequencies are not among the weights. `fourier_index` has them after construction.
//
// ATTENTION, THE SWITCH REPLACES THE MECHANISM. FEDformer has no softmax attention to make faster.
// use_flash_attention (or attention "flash") puts exact softmax attention with the same projections
// in the place of the Fourier blocks, in all layers: another model with the same parameters, whose
// forecasts differ, and which must be trained that way. The blocks' weights are then kept, but not
// used. attention "standard" is that other model with its scores stored, and gives the numbers of
// "flash". The default "native" is neuralforecast's.
//
// The blocks' weights are complex: to(torch::kDouble) makes them complex128.

#include <flash_attention/export.h>
#include <flash_attention/models/forecast_model.h>
#include <flash_attention/models/model_config.h>
#include <torch/nn/cloneable.h>
#include <torch/nn/pimpl.h>

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace flash::models {

class DecompositionTransformer;

/// A sorted list of whole periods per block.
using FourierIndex = std::map<std::string, std::vector<int64_t>>;

/// Options of `FEDformer`.
///
///     FEDformer model(FEDformerOptions(/*h=*/96, /*input_size=*/336).mode_select("low"));
struct FEDformerOptions {
  FEDformerOptions(int64_t h, int64_t input_size) : h_(h), input_size_(input_size) {}

  /// Sets the three switches below.
  FEDformerOptions& config(const ModelConfig& config) {
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
  /// Share of the past that the decoder sees, between 0 and 1 exclusive. Default: 0.5.
  TORCH_ARG(double, decoder_input_size_multiplier) = 0.5;
  /// Only "Fourier" exists. Default: "Fourier".
  TORCH_ARG(std::string, version) = "Fourier";
  /// Frequencies that a block looks at, at most half its length. Default: 64.
  TORCH_ARG(int64_t, modes) = 64;
  /// Which: "random" ones, or, with anything else, the lowest. Default: "random".
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
  /// Default: 2.
  TORCH_ARG(int64_t, encoder_layers) = 2;
  /// Default: 1.
  TORCH_ARG(int64_t, decoder_layers) = 1;
  /// Steps that the trend is averaged over, odd. Default: 25.
  TORCH_ARG(int64_t, MovingAvg_window) = 25;
  /// Draws the random frequencies, and nothing else; the same ones that neuralforecast draws with
  /// that seed. Default: 1.
  TORCH_ARG(int64_t, random_seed) = 1;
  /// The frequencies of each block, sorted: "enc_self", "dec_self", "dec_cross_q", "dec_cross_kv".
  /// Empty: as mode_select says. The model's options have those it uses. Default: empty.
  TORCH_ARG(FourierIndex, fourier_index) = {};
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

class FLASH_API FEDformerImpl : public torch::nn::Cloneable<FEDformerImpl>, public ForecastModel {
 public:
  /// Throws c10::ValueError where an option is out of range.
  explicit FEDformerImpl(FEDformerOptions options_);

  void reset() override;
  std::shared_ptr<torch::nn::Module> clone(
      const std::optional<torch::Device>& device = std::nullopt) const override;
  void pretty_print(std::ostream& stream) const override;

  /// insample_y [B, input_size, 1], and futr_exog [B, input_size + h, F] exactly where
  /// futr_exog_list is not empty; float32 or float64 like the parameters -> the forecast
  /// [B, h, outputsize_multiplier]. Throws c10::ValueError on other tensors.
  at::Tensor forward(const WindowsBatch& windows) override;
  using ForecastModel::forward;

  std::string model_class() const override { return "FEDformer"; }
  void visit_options(OptionVisitor& visitor) override;
  int64_t outputsize_multiplier() const override { return options.outputsize_multiplier(); }
  std::map<std::string, std::string> tied_parameters() const override;
  torch::nn::Module& module() override { return *this; }

  FEDformerOptions options;

 private:
  std::shared_ptr<DecompositionTransformer> network_;
};

TORCH_MODULE(FEDformer);

}  // namespace flash::models
