#pragma once
// Losses as in neuralforecast 3.3.0, under its names: what a model's raw output means, how it is
// trained, and how it becomes a forecast.
//
//     auto loss = make_loss("MQLoss", LossOptions().level({80, 90}));
//     PatchTST model(PatchTSTOptions(96,
//     336).outputsize_multiplier(loss->outputsize_multiplier()));
//     ...
//     loss->training_loss(model->forward(windows), y).backward();
//     at::Tensor forecast = loss->forecast(model->forward(windows));  // [B, h, N, columns]
//
// B windows, horizon h, N series (1 but for iTransformer), M outputs per step and series. The raw
// output is [B, h, M * N] with the series innermost: output m of series n at m * N + n.
//
// Not as in neuralforecast:
//  - MQLoss reads a raw output of several series (iTransformer) in that order. neuralforecast reads
//    it as n * M + m and so mixes series with quantiles.
//  - Quantiles and means of distributions are exact, not those of 1,000 random samples.
//  - What is masked may be NaN, without harm to the gradient.
// As in neuralforecast, though perhaps unexpected: MQLoss is the sum over the quantiles, not the
// mean; quantiles and weights over the horizon are rounded to float32; a window scaler does not
// undo minmax1's stretch or invariant's asinh for distributions, only level and spread.

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

/// Options of `make_loss`, named as neuralforecast's arguments; each loss reads those it has.
struct LossOptions {
  /// Prediction intervals in percent, each in (0, 100). MQLoss, DistributionLoss. Default: 80, 90.
  TORCH_ARG(std::vector<double>, level) = {80, 90};
  /// Quantiles, each in (0, 1), instead of `level`. MQLoss keeps their order, DistributionLoss
  /// sorts them. Default: none.
  TORCH_ARG(std::vector<double>, quantiles) = {};
  /// Quantile of QuantileLoss, in (0, 1). Default: 0.5.
  TORCH_ARG(double, q) = 0.5;
  /// HuberLoss is quadratic up to here and linear beyond. Default: 1.
  TORCH_ARG(double, delta) = 1.0;
  /// "Bernoulli", "NegativeBinomial", "Normal", "Poisson" or "StudentT", for DistributionLoss.
  TORCH_ARG(std::string, distribution) = "";
  /// The distribution's parameters as further columns of the forecast. Default: false.
  TORCH_ARG(bool, return_params) = false;
  /// Weight of each of the h steps in the loss. Default: none, that is 1.
  TORCH_ARG(std::vector<double>, horizon_weight) = {};
};

class FLASH_API Loss {
 public:
  virtual ~Loss() = default;

  /// neuralforecast's name of the class: "MAE", "MQLoss", "DistributionLoss", ...
  const std::string& name() const { return name_; }
  /// M, the model's option of the same name.
  int64_t outputsize_multiplier() const { return outputsize_multiplier_; }
  /// The forecast's columns, as neuralforecast appends them to the model's name: "" for a point or
  /// the mean, "-median", "-lo-90", "-hi-80", "_ql0.5", "-loc", ...
  const std::vector<std::string>& output_names() const { return output_names_; }
  virtual bool is_distribution_output() const = 0;

  /// The scalar to minimise. output [B, h, M * N] is what the model makes of the scaled windows, y
  /// [B, h, N] the truth on the original scale, mask (like y, or undefined for 1) the weight of
  /// each value. Point losses compare with the scaled truth, distribution losses bring the
  /// distribution back to the original scale first. 0 where all weights are 0.
  /// Throws c10::ValueError or c10::TypeError naming the shapes or dtypes expected.
  virtual at::Tensor training_loss(const at::Tensor& output, const at::Tensor& y,
                                   const WindowScaling& scaling = {},
                                   const at::Tensor& mask = {}) const = 0;

  /// The same on the original scale for every loss, as neuralforecast validates.
  virtual at::Tensor validation_loss(const at::Tensor& output, const at::Tensor& y,
                                     const WindowScaling& scaling = {},
                                     const at::Tensor& mask = {}) const = 0;

  /// output [B, h, M * N] -> [B, h, N, columns] on the original scale, see output_names().
  virtual at::Tensor forecast(const at::Tensor& output,
                              const WindowScaling& scaling = {}) const = 0;

  const LossOptions options;

 protected:
  Loss(std::string name, LossOptions options_, int64_t outputsize_multiplier,
       std::vector<std::string> output_names);

  /// output [B, h, M * N] -> its view [B, h, M, N].
  at::Tensor by_output(const at::Tensor& output) const;
  /// Mean of values(y) over y and mask [B, h, N], weighted with mask and horizon_weight.
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
  /// Losses of single values: y [B, h, N] and y_hat as from domain_map -> [B, h, N].
  using Errors = std::function<at::Tensor(const at::Tensor& y, const at::Tensor& y_hat)>;

  PointLoss(std::string name, LossOptions options_, std::vector<std::string> output_names,
            Errors errors);

  bool is_distribution_output() const override { return false; }

  /// output [B, h, M * N] -> [B, h, N]; MQLoss [B, h, N, M].
  at::Tensor domain_map(const at::Tensor& output) const;
  /// The loss of y_hat, as from domain_map and on the scale of y [B, h, N].
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

/// The mean negative log likelihood. Parameters, in this order, and y, which must be real unless
/// another range is given:
///     Bernoulli          probs                y is 0 or 1
///     NegativeBinomial   total_count, probs   y is at least 0
///     Normal             loc, scale
///     Poisson            rate                 y is at least 0
///     StudentT           df, loc, scale
class FLASH_API DistributionLoss : public Loss {
 public:
  explicit DistributionLoss(LossOptions options_);

  bool is_distribution_output() const override { return true; }

  /// output [B, h, M * N] -> M raw pieces [B, h, N].
  std::vector<at::Tensor> domain_map(const at::Tensor& output) const;
  /// Raw pieces -> the distribution's parameters [B, h, N] on the original scale. Without scaling
  /// as neuralforecast's models with the identity scaler (loc 0, scale 1), not as its function
  /// called with neither.
  std::vector<at::Tensor> scale_decouple(const std::vector<at::Tensor>& pieces,
                                         const WindowScaling& scaling = {}) const;
  /// The loss of the parameters for y [B, h, N]. Throws c10::ValueError where a y that is not
  /// masked is outside the distribution's range.
  at::Tensor operator()(const at::Tensor& y, const std::vector<at::Tensor>& parameters,
                        const at::Tensor& mask = {}) const;

  /// [B, h, N], exact.
  at::Tensor mean(const std::vector<at::Tensor>& parameters) const;
  /// [B, h, N, number of quantiles], each in (0, 1): the smallest value whose probability of not
  /// being exceeded is at least the quantile. Exact, without gradient.
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

/// A loss by its name. A distribution's name stands for DistributionLoss with it:
/// make_loss("StudentT").
///
/// Throws c10::ValueError naming the losses there are if the name is unknown, and on levels,
/// quantiles or weights out of range or given twice.
FLASH_API std::shared_ptr<Loss> make_loss(const std::string& name, LossOptions options = {});

}  // namespace flash::models
