#pragma once
// neuralforecast's window scalers (`scaler_type`): each window is brought to one level and spread
// before the model sees it, and the forecast is brought back afterwards. The models themselves know
// nothing of it.
//
//     TemporalNorm norm("robust");
//     const auto [scaled, scaling] = norm->transform(windows);
//     const at::Tensor output = model->forward(scaled);
//     loss->training_loss(output, y, scaling).backward();     // see losses.h
//     at::Tensor forecast = loss->forecast(output, scaling);  // on the scale of `windows` again
//
// Level and spread, over the steps of a window's past that count (mask of at least 1, value not
// NaN), for each window, column and series:
//     identity   0, 1
//     standard   mean, standard deviation (divided by n)
//     robust     median, median absolute deviation; where that is 0, 0.6745 standard deviations
//     minmax     minimum, maximum - minimum: the window becomes 0 .. 1
//     minmax1    likewise, stretched to -1 .. 1
//     invariant  as robust, then asinh
//     revin      as standard; the way back has a learned shift and factor on top
// The median of an even count is the lower one, as torch's. A spread of 0 counts as 1, and 1e-6 is
// added to all but identity's. A window where nothing counts has level 0 and spread 1 + 1e-6 (for
// minmax neuralforecast makes it infinite, and the forecast NaN).

#include <ATen/core/Tensor.h>
#include <flash_attention/export.h>
#include <flash_attention/models/windows_batch.h>
#include <torch/arg.h>
#include <torch/nn/cloneable.h>
#include <torch/nn/pimpl.h>

#include <string>
#include <utility>
#include <vector>

namespace flash::models {

enum class Scaler { kIdentity, kStandard, kRobust, kMinMax, kMinMax1, kInvariant, kRevIN };

/// "identity", "invariant", "minmax", "minmax1", "revin", "robust", "standard".
FLASH_API const std::vector<std::string>& scaler_types();

/// How the series of one batch of windows were scaled. Without tensors: not at all.
struct FLASH_API WindowScaling {
  Scaler scaler = Scaler::kIdentity;
  at::Tensor shift = {};   ///< [B, 1, N]: `transform` subtracts it,
  at::Tensor spread = {};  ///< [B, 1, N]: and divides by this.
  at::Tensor loc = {};     ///< [B, 1, N]: shift, and what "revin" has learned on top
  at::Tensor scale = {};   ///< [B, 1, N]: spread, likewise

  /// values [B, T, N] of the same windows -> scaled, for instance the target of a point loss.
  at::Tensor transform(const at::Tensor& values) const;

  /// scaled [B, T, N] or [B, T, N, outputs] -> on the scale of the windows. Quantiles may pass too:
  /// all these functions are increasing.
  at::Tensor inverse_transform(const at::Tensor& scaled) const;
};

/// Options of `TemporalNorm`.
struct FLASH_API TemporalNormOptions {
  /* implicit */ TemporalNormOptions(std::string scaler_type = "robust")
      : scaler_type_(std::move(scaler_type)) {}
  /* implicit */ TemporalNormOptions(const char* scaler_type) : scaler_type_(scaler_type) {}

  /// One of `scaler_types()`. neuralforecast's default is "robust" for TFT and "identity" for the
  /// other five models.
  TORCH_ARG(std::string, scaler_type);
  /// Columns that the parameters of "revin" have room for: 1 + historic + future exogenous ones.
  /// Only the first, for the series, has an effect. Default: 1.
  TORCH_ARG(int64_t, num_features) = 1;
  /// Added to each spread. Default: 1e-6.
  TORCH_ARG(double, eps) = 1e-6;
};

/// A module because of "revin", whose parameters `revin_bias` and `revin_weight`
/// [1, 1, num_features, 1] carry neuralforecast's names. As there, only distribution losses train
/// them: point losses compare on the scaled side. The other scalers have no parameters.
class FLASH_API TemporalNormImpl : public torch::nn::Cloneable<TemporalNormImpl> {
 public:
  /// Throws c10::ValueError on an unknown scaler (naming those there are) or an option below 0.
  explicit TemporalNormImpl(TemporalNormOptions options_ = {});

  void reset() override;
  void pretty_print(std::ostream& stream) const override;

  /// Scales insample_y, hist_exog and futr_exog, each column by its own past: the first input_size
  /// steps where insample_mask (all steps if undefined) is at least 1. futr_exog's future is scaled
  /// by its past; insample_mask and stat_exog stay as they are. Also returns how insample_y was
  /// scaled. `windows` is left alone. Throws c10::ValueError on shapes that do not fit.
  std::pair<WindowsBatch, WindowScaling> transform(const WindowsBatch& windows) const;

  /// Level and spread of values [B, T, N] over T where mask, broadcastable to it and undefined for
  /// everywhere, is at least 1. What `transform` scales insample_y by.
  WindowScaling statistics(const at::Tensor& values, const at::Tensor& mask = {}) const;

  TemporalNormOptions options;

 private:
  Scaler scaler_;
  at::Tensor revin_bias_, revin_weight_;
};

TORCH_MODULE(TemporalNorm);

}  // namespace flash::models
