#pragma once
// neuralforecast's window scalers (`scaler_type`): they normalise each window before the model sees
// it, and undo that on the forecast. The models do not depend on them.
//
//     TemporalNorm norm("robust");
//     const auto [scaled, scaling] = norm->transform(windows);
//     const at::Tensor output = model->forward(scaled);
//     loss->training_loss(output, y, scaling).backward();     // see losses.h
//     at::Tensor forecast = loss->forecast(output, scaling);  // on the scale of `windows`
//
// Shift and spread of each window, column and series, over the observed steps of the window's past
// (mask of at least 1, value not NaN):
//     identity   0, 1
//     standard   mean, standard deviation (divided by n)
//     robust     median, median absolute deviation; where that is 0, 0.6745 standard deviations
//     minmax     minimum, maximum - minimum: the window is mapped to [0, 1]
//     minmax1    the same, then mapped to [-1, 1]
//     invariant  as robust, then asinh
//     revin      as standard; the inverse has a learned shift and factor in addition
// The median of an even count is the lower one, as in torch. A spread of 0 is replaced by 1, and
// 1e-6 is added to every spread except identity's. A window without observed steps has shift 0 and
// spread 1 + 1e-6 (neuralforecast's minmax makes the spread infinite, and the forecast NaN).

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

/// How the series of one batch of windows were scaled. Undefined tensors mean no scaling.
struct FLASH_API WindowScaling {
  Scaler scaler = Scaler::kIdentity;
  at::Tensor shift = {};   ///< [B, 1, N]: `transform` subtracts it,
  at::Tensor spread = {};  ///< [B, 1, N]: and divides by this.
  at::Tensor loc = {};     ///< [B, 1, N]: shift, with revin's learned one
  at::Tensor scale = {};   ///< [B, 1, N]: spread, with revin's learned factor

  /// values [B, T, N] of the same windows -> scaled. For example the target of a point loss.
  at::Tensor transform(const at::Tensor& values) const;

  /// scaled [B, T, N] or [B, T, N, outputs] -> on the scale of the windows. Valid for quantiles
  /// too, because every scaler is increasing.
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
  /// Columns in the parameters of "revin": 1 + historic + future exogenous ones. Only the first,
  /// for the series, has an effect. Default: 1.
  TORCH_ARG(int64_t, num_features) = 1;
  /// Added to each spread. Default: 1e-6.
  TORCH_ARG(double, eps) = 1e-6;
};

/// A module because "revin" has parameters, `revin_bias` and `revin_weight`
/// [1, 1, num_features, 1], named as in neuralforecast. As there, only distribution losses train
/// them, because point losses compare on the scaled side.
class FLASH_API TemporalNormImpl : public torch::nn::Cloneable<TemporalNormImpl> {
 public:
  /// Throws c10::ValueError for an unknown scaler, listing the known ones, or an option below 0.
  explicit TemporalNormImpl(TemporalNormOptions options_ = {});

  void reset() override;
  void pretty_print(std::ostream& stream) const override;

  /// Returns scaled windows and how insample_y was scaled. insample_y, hist_exog and futr_exog are
  /// scaled, each column by the statistics of its first input_size steps where insample_mask is at
  /// least 1 (all steps if undefined); these also scale the future of futr_exog. insample_mask and
  /// stat_exog stay unchanged. Throws c10::ValueError if shapes do not fit.
  std::pair<WindowsBatch, WindowScaling> transform(const WindowsBatch& windows) const;

  /// Shift and spread of values [B, T, N] over the steps where mask is at least 1, as `transform`
  /// uses them for insample_y. `mask` is broadcast to `values`; undefined means all steps.
  WindowScaling statistics(const at::Tensor& values, const at::Tensor& mask = {}) const;

  TemporalNormOptions options;

 private:
  Scaler scaler_;
  at::Tensor revin_bias_, revin_weight_;
};

TORCH_MODULE(TemporalNorm);

}  // namespace flash::models
