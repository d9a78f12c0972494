#pragma once
// The losses of neuralforecast 3.3.0, under its names. A loss defines what a model's raw output
// means, how the model is trained on it, and how it becomes a forecast.
//
//     auto loss = make_loss("MQLoss", LossOptions().level({80, 90}));
//     const int64_t outputs = loss->outputsize_multiplier();
//     PatchTST model(PatchTSTOptions(/*h=*/96, /*input_size=*/336).outputsize_multiplier(outputs));
//     ...
//     loss->training_loss(model->forward(windows), y).backward();
//     at::Tensor forecast = loss->forecast(model->forward(windows));  // [B, h, N, columns]
//
// B windows, horizon h, N series (1 except for iTransformer), M outputs per step and series. The
// raw output is [B, h, M * N] with the series innermost: output m of series n at m * N + n.
//
// Differences from neuralforecast:
//  - MQLoss reads a raw output of several series (iTransformer) in that order. neuralforecast reads
//    it as n * M + m, which mixes series with quantiles.
//  - Quantiles and means of distributions are exact, not estimated from 1,000 random samples.
//  - Masked values may be NaN; the gradient stays finite.
// The same as in neuralforecast, but perhaps unexpected: MQLoss sums over the quantiles instead of
// averaging; quantiles and horizon weights are rounded to float32; for distributions a window
// scaler undoes only level and spread, not minmax1's stretch or invariant's asinh.

#include <ATen/core/Tensor.h>
#include <flash_attention/export.h>
#include <flash_attention/models/temporal_norm.h>
#include <torch/arg.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace flash::models {

class Distribution;

/// Options of `make_loss`, with the names of neuralforecast's arguments. A loss ignores those that
/// it does not have.
struct LossOptions {
  /// Prediction intervals in percent, each in (0, 100). MQLoss, DistributionLoss. Default: 80, 90.
  TORCH_ARG(std::vector<double>, level) = {80, 90};
  /// Quantiles, each in (0, 1), instead of `level`. MQLoss keeps their order, DistributionLoss
  /// sorts them. Default: none.
  TORCH_ARG(std::vector<double>, quantiles) = {};
  /// Quantile of QuantileLoss, in (0, 1). Default: 0.5.
  TORCH_ARG(double, q) = 0.5;
  /// HuberLoss is quadratic up to this error and linear beyond. Default: 1.
  TORCH_ARG(double, delta) = 1.0;
  /// "Bernoulli", "NegativeBinomial", "Normal", "Poisson" or "StudentT", for DistributionLoss.
  TORCH_ARG(std::string, distribution) = "";
  /// Add the distribution's parameters to the forecast as columns. Default: false.
  TORCH_ARG(bool, return_params) = false;
  /// Weight of each of the h steps in the loss. Default: none, which weights all by 1.
  TORCH_ARG(std::vector<double>, horizon_weight) = {};
};

class FLASH_API Loss {
 public:
  virtual ~Loss() = default;

  /// neuralforecast's name of the class: "MAE", "MQLoss", "DistributionLoss", ...
  const std::string& name() const { return name_; }
  /// M, for the model's option of the same name.
  int64_t outputsize_multiplier() const { return outputsize_multiplier_; }
  /// Suffixes that neuralforecast appends to the model's name for the forecast's columns: "" for a
  /// point or the mean, "-median", "-lo-90", "-hi-80", "_ql0.5", "-loc", ...
  const std::vector<std::string>& output_names() const { return output_names_; }
  virtual bool is_distribution_output() const = 0;

  /// The scalar to minimise. `output` [B, h, M * N] is the model's output for the scaled windows,
  /// `y` [B, h, N] the target on the original scale, and `mask` (shaped like y, or undefined for 1)
  /// the weight of each value. Point losses compare on the scaled side; distribution losses first
  /// bring the distribution back to the original scale. 0 if all weights are 0.
  /// Throws c10::ValueError or c10::TypeError naming the expected shapes or dtypes.
  virtual at::Tensor training_loss(const at::Tensor& output, const at::Tensor& y,
                                   const WindowScaling& scaling = {},
                                   const at::Tensor& mask = {}) const = 0;

  /// As training_loss, but always on the original scale. neuralforecast validates like this.
  virtual at::Tensor validation_loss(const at::Tensor& output, const at::Tensor& y,
                                     const WindowScaling& scaling = {},
                                     const at::Tensor& mask = {}) const = 0;

  /// output [B, h, M * N] -> [B, h, N, columns] on the original scale, one column per
  /// output_names().
  virtual at::Tensor forecast(const at::Tensor& output,
                              const WindowScaling& scaling = {}) const = 0;

  const LossOptions options;

 protected:
  Loss(std::string name, LossOptions options_, int64_t outputsize_multiplier,
       std::vector<std::string> output_names);

  /// output [B, h, M * N] -> its view [B, h, M, N].
  at::Tensor by_output(const at::Tensor& output) const;
  /// Mean of values(y) over y and mask [B, h, N], weighted by mask and horizon_weight.
  at::Tensor weighted_mean(const at::Tensor& y, const at::Tensor& mask,
                           const std::function<at::Tensor(const at::Tensor& y)>& values) const;

 private:
  std::string name_;
  int64_t outputsize_multiplier_;
  std::vector<std::string> output_names_;
};

/// MAE, MSE, RMSE, MAPE, SMAPE, HuberLoss, QuantileLoss and MQLoss.
class FLASH_API PointLoss : public Loss {
 public:
  /// The error of each value: y [B, h, N] and y_hat from domain_map -> [B, h, N].
  using Errors = std::function<at::Tensor(const at::Tensor& y, const at::Tensor& y_hat)>;

  PointLoss(std::string name, LossOptions options_, std::vector<std::string> output_names,
            Errors errors);

  bool is_distribution_output() const override { return false; }

  /// output [B, h, M * N] -> [B, h, N]; MQLoss [B, h, N, M].
  at::Tensor domain_map(const at::Tensor& output) const;
  /// The loss of y_hat, which comes from domain_map and is on the scale of y [B, h, N].
  at::Tensor operator()(const at::Tensor& y, const at::Tensor& y_hat,
                        const at::Tensor& mask = {}) const;

  at::Tensor training_loss(const at::Tensor& output, const at::Tensor& y,
                           const WindowScaling& scaling = {},
                           const at::Tensor& mask = {}) const override;
  at::Tensor validation_loss(const at::Tensor& output, const at::Tensor& y,
                             const WindowScaling& scaling = {},
                             const at::Tensor& mask = {}) const override;
  at::Tensor forecast(const at::Tensor& output, const WindowScaling& scaling = {}) const override;

 private:
  Errors errors_;
};

/// The mean negative log likelihood. Parameters in this order, and the range of y (default: any
/// finite number):
///     Bernoulli          probs                y is 0 or 1
///     NegativeBinomial   total_count, probs   y is at least 0
///     Normal             loc, scale
///     Poisson            rate                 y is at least 0
///     StudentT           df, loc, scale
class FLASH_API DistributionLoss : public Loss {
 public:
  explicit DistributionLoss(LossOptions options_);

  bool is_distribution_output() const override { return true; }

  /// output [B, h, M * N] -> M tensors [B, h, N] of raw parameters.
  std::vector<at::Tensor> domain_map(const at::Tensor& output) const;
  /// Raw parameters -> the distribution's parameters [B, h, N] on the original scale. Without
  /// scaling this does what neuralforecast's models do with the identity scaler (loc 0, scale 1),
  /// not what its scale_decouple does without loc and scale.
  std::vector<at::Tensor> scale_decouple(const std::vector<at::Tensor>& raw,
                                         const WindowScaling& scaling = {}) const;
  /// The loss of the parameters for y [B, h, N]. Throws c10::ValueError if an unmasked y is outside
  /// the distribution's range.
  at::Tensor operator()(const at::Tensor& y, const std::vector<at::Tensor>& parameters,
                        const at::Tensor& mask = {}) const;

  /// The exact mean, [B, h, N].
  at::Tensor mean(const std::vector<at::Tensor>& parameters) const;
  /// For quantiles in (0, 1): the smallest x with P(X <= x) >= quantile, [B, h, N, quantiles].
  /// Exact; not differentiable.
  at::Tensor quantiles(const std::vector<at::Tensor>& parameters,
                       const std::vector<double>& quantiles) const;

  at::Tensor training_loss(const at::Tensor& output, const at::Tensor& y,
                           const WindowScaling& scaling = {},
                           const at::Tensor& mask = {}) const override;
  at::Tensor validation_loss(const at::Tensor& output, const at::Tensor& y,
                             const WindowScaling& scaling = {},
                             const at::Tensor& mask = {}) const override;
  at::Tensor forecast(const at::Tensor& output, const WindowScaling& scaling = {}) const override;

 private:
  void check_count(const std::vector<at::Tensor>& tensors) const;

  const Distribution* distribution_;
  std::vector<double> quantiles_;
};

/// "DistributionLoss", "HuberLoss", "MAE", "MAPE", "MQLoss", "MSE", "QuantileLoss", "RMSE",
/// "SMAPE".
FLASH_API const std::vector<std::string>& loss_names();
/// "Bernoulli", "NegativeBinomial", "Normal", "Poisson", "StudentT".
FLASH_API const std::vector<std::string>& distribution_names();

/// A loss by its name. The name of a distribution is short for DistributionLoss with that
/// distribution: make_loss("StudentT").
///
/// Throws c10::ValueError for an unknown name, listing the known ones, and for levels, quantiles or
/// weights that are out of range or given twice.
FLASH_API std::shared_ptr<Loss> make_loss(const std::string& name, LossOptions options = {});

}  // namespace flash::models
