#pragma once
// iTransformer (Liu et al., "iTransformer", arXiv:2310.06625) as in neuralforecast 3.3.0, with the
// same option names, defaults, parameter names, initial weights and outputs. Reproduced
// deliberately:
//  - `d_layers` and `factor` have no effect; the activation is GELU.
//  - Channel m * N + n is output m of series n. neuralforecast's own quantile losses read it as
//    n * M + m, which mixes series with quantiles; the losses of losses.h do not.
//  - The window's mean is detached, its deviation is not.

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

/// Options of `ITransformer`.
///
///     ITransformer model(ITransformerOptions(/*h=*/96, /*input_size=*/96, /*n_series=*/7));
struct FLASH_API ITransformerOptions : ForecastOptions<ITransformerOptions> {
  static constexpr const char* kModelClass = "iTransformer";

  ITransformerOptions(int64_t h, int64_t input_size, int64_t n_series)
      : ForecastOptions(h, input_size), n_series_(n_series) {}

  /// Series forecast together; each is a token.
  TORCH_ARG(int64_t, n_series);
  /// Names of the variables known for past and future; each adds one token per series.
  /// Default: none.
  TORCH_ARG(std::vector<std::string>, futr_exog_list) = {};
  /// Width of the layers. Default: 512.
  TORCH_ARG(int64_t, hidden_size) = 512;
  /// Attention heads, each of width hidden_size / n_heads, rounded down. Default: 8.
  TORCH_ARG(int64_t, n_heads) = 8;
  /// Encoder layers. Default: 2.
  TORCH_ARG(int64_t, e_layers) = 2;
  /// Has no effect, as in neuralforecast. Default: 1.
  TORCH_ARG(int64_t, d_layers) = 1;
  /// Width of the feed-forward layers. Default: 2048.
  TORCH_ARG(int64_t, d_ff) = 2048;
  /// Has no effect, as in neuralforecast. Default: 1.
  TORCH_ARG(int64_t, factor) = 1;
  /// Probability of dropping an activation or an attention weight. Default: 0.1.
  TORCH_ARG(double, dropout) = 0.1;
  /// Whether to normalise each series of a window and undo that on the forecast. Default: true.
  TORCH_ARG(bool, use_norm) = true;
};

class InvertedEmbeddingImpl;
class TokenEncoderImpl;

class FLASH_API ITransformerImpl : public ForecastModelBase<ITransformerImpl, ITransformerOptions> {
 public:
  /// Throws c10::ValueError if an option is out of range.
  explicit ITransformerImpl(ITransformerOptions options_);

  void reset() override;

  using ForecastModel::forward;
  /// insample_y [B, input_size, N]; optionally futr_exog [B, F, input_size + h, N] if
  /// futr_exog_list is not empty -> [B, h, outputsize_multiplier * N].
  torch::Tensor forward(const WindowsBatch& windows) override;

 private:
  std::shared_ptr<InvertedEmbeddingImpl> embedding_;
  torch::nn::Linear futr_embedding_{nullptr};
  std::shared_ptr<TokenEncoderImpl> encoder_;
  torch::nn::Linear projector_{nullptr};
};

TORCH_MODULE(ITransformer);

}  // namespace flash::models
