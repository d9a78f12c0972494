#pragma once
// Informer (Zhou et al., "Informer", arXiv:2012.07436) as in neuralforecast 3.3.0, with the same
// option names, defaults, parameter names, initial weights and outputs. Reproduced deliberately:
//  - ProbSparse attention samples new keys in every forward, in eval mode too. Call
//    torch::manual_seed before a forward to reproduce it.
//  - Its output [B, H, L, d] is read as [B, L, H d] without a transposition, which mixes times and
//    heads, so the decoder's self-attention is not causal. Attention weights are never dropped.
// Not reproduced: with n_head 1, neuralforecast lets every sample use the queries selected by all
// samples of the batch, which makes forecasts depend on the batch, and counts gradients twice.

#include <flash_attention/export.h>
#include <flash_attention/models/forecast_model_base.h>
#include <flash_attention/models/forecast_options.h>
#include <torch/arg.h>
#include <torch/nn/pimpl.h>

#include <memory>
#include <string>
#include <vector>

namespace flash::models {

/// Options of `Informer`.
///
///     Informer model(InformerOptions(/*h=*/96, /*input_size=*/336).use_flash_attention(true));
struct FLASH_API InformerOptions : ForecastOptions<InformerOptions> {
  static constexpr const char* kModelClass = "Informer";

  using ForecastOptions::ForecastOptions;

  /// Names of the variables known for past and future. Default: none.
  TORCH_ARG(std::vector<std::string>, futr_exog_list) = {};
  /// Fraction of the past that the decoder sees, in (0, 1). Default: 0.5.
  TORCH_ARG(double, decoder_input_size_multiplier) = 0.5;
  /// Width of the layers, even. Default: 128.
  TORCH_ARG(int64_t, hidden_size) = 128;
  /// Probability of dropping an activation. Default: 0.05.
  TORCH_ARG(double, dropout) = 0.05;
  /// Number of selected queries and of sampled keys: factor * ceil(ln(length)). Default: 3.
  TORCH_ARG(int64_t, factor) = 3;
  /// Attention heads, each of width hidden_size / n_head, rounded down. Default: 4.
  TORCH_ARG(int64_t, n_head) = 4;
  /// Width of the feed-forward layers. Default: 32.
  TORCH_ARG(int64_t, conv_hidden_size) = 32;
  /// "gelu" or "relu". Default: "gelu".
  TORCH_ARG(std::string, activation) = "gelu";
  /// Layers of the encoder. Default: 2.
  TORCH_ARG(int64_t, encoder_layers) = 2;
  /// Layers of the decoder. Default: 1.
  TORCH_ARG(int64_t, decoder_layers) = 1;
  /// Whether to halve the sequence between encoder layers. Default: true.
  TORCH_ARG(bool, distil) = true;
};

class DataEmbeddingImpl;
class InformerEncoderImpl;
class InformerDecoderImpl;

class FLASH_API InformerImpl : public ForecastModelBase<InformerImpl, InformerOptions> {
 public:
  /// Throws c10::ValueError if an option is out of range.
  explicit InformerImpl(InformerOptions options_);

  void reset() override;

  using ForecastModel::forward;
  /// insample_y [B, input_size, 1]; futr_exog [B, input_size + h, F] if and only if futr_exog_list
  /// is not empty -> [B, h, outputsize_multiplier].
  torch::Tensor forward(const WindowsBatch& windows) override;

 private:
  std::shared_ptr<DataEmbeddingImpl> encoder_embedding_, decoder_embedding_;
  std::shared_ptr<InformerEncoderImpl> encoder_;
  std::shared_ptr<InformerDecoderImpl> decoder_;
};

TORCH_MODULE(Informer);

}  // namespace flash::models
