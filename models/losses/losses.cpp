#include <flash_attention/models/losses.h>
#include <torch/torch.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "losses/loss_columns.h"

namespace flash::models {
namespace {

/// q (y - y_hat) for y >= y_hat, otherwise (q - 1) (y - y_hat).
template <class Quantile>
at::Tensor pinball(const at::Tensor& error, const Quantile& q) {
  return at::maximum(q * error, (q - 1.0) * error);
}

at::Tensor absolute_percentage(const at::Tensor& y, const at::Tensor& y_hat) {
  const at::Tensor size = y.abs();
  return at::where(size == 0, 0.0, (y - y_hat).abs() / at::where(size == 0, 1.0, size));
}

at::Tensor symmetric_percentage(const at::Tensor& y, const at::Tensor& y_hat) {
  const at::Tensor size = y.abs() + y_hat.abs();
  return at::where(size == 0, 0.0, 2.0 * (y - y_hat).abs() / at::where(size == 0, 1.0, size));
}

at::Tensor squared(const at::Tensor& y, const at::Tensor& y_hat) { return (y - y_hat).square(); }

std::string joined(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : ", ") + word;
  return text;
}

std::shared_ptr<Loss> make_point_loss(const std::string& name, LossOptions options) {
  const auto point = [&](PointLoss::Errors errors, std::string column = "") {
    return std::make_shared<PointLoss>(name, options, std::vector<std::string>{std::move(column)},
                                       std::move(errors));
  };
  if (name == "MAE") {
    return point([](const auto& y, const auto& y_hat) { return (y - y_hat).abs(); });
  }
  if (name == "MSE" || name == "RMSE") return point(squared);
  if (name == "MAPE") return point(absolute_percentage);
  if (name == "SMAPE") return point(symmetric_percentage);
  if (name == "HuberLoss") {
    const double delta = options.delta();
    TORCH_CHECK_VALUE(delta > 0.0, "HuberLoss: expected delta above 0, got ", delta);
    return point([delta](const auto& y, const auto& y_hat) {
      return at::huber_loss(y_hat, y, at::Reduction::None, delta);
    });
  }
  if (name == "QuantileLoss") {
    const double q = options.q();
    check_quantiles(name, {q});
    return point([q](const auto& y, const auto& y_hat) { return pinball(y - y_hat, q); },
                 "_ql" + decimal(q, /*keep_point=*/true));
  }
  if (name == "MQLoss") {
    const Columns columns = quantile_columns(name, options);
    return std::make_shared<PointLoss>(
        name, options, columns.names, [q = columns.quantiles](const auto& y, const auto& y_hat) {
          return pinball(y.unsqueeze(-1) - y_hat,
                         at::tensor(q, y_hat.options().requires_grad(false)))
              .sum(-1);
        });
  }
  return nullptr;
}

}  // namespace

Loss::Loss(std::string name, LossOptions options_, int64_t outputsize_multiplier,
           std::vector<std::string> output_names)
    : options(std::move(options_)),
      name_(std::move(name)),
      outputsize_multiplier_(outputsize_multiplier),
      output_names_(std::move(output_names)) {
  for (const double weight : options.horizon_weight()) {
    TORCH_CHECK_VALUE(std::isfinite(weight) && weight >= 0.0, name_,
                      ": expected weights of at least 0 as horizon_weight, got ", weight);
  }
}

at::Tensor Loss::by_output(const at::Tensor& output) const {
  TORCH_CHECK_VALUE(
      output.dim() == 3 && output.size(2) >= 1 && output.size(2) % outputsize_multiplier_ == 0,
      name_, ": expected an output [batch, h, ", outputsize_multiplier_, " * series], got ",
      output.sizes(), "; give the model outputsize_multiplier ", outputsize_multiplier_);
  return output.unflatten(2, {outputsize_multiplier_, output.size(2) / outputsize_multiplier_});
}

at::Tensor Loss::weighted_mean(const at::Tensor& y, const at::Tensor& mask,
                               const std::function<at::Tensor(const at::Tensor& y)>& values) const {
  TORCH_CHECK_VALUE(!mask.defined() || mask.sizes() == y.sizes(), name_,
                    ": expected a mask of y's shape ", y.sizes(), ", got ", mask.sizes());
  at::Tensor weights = mask.defined() ? mask.to(y.scalar_type()) : mask;
  if (const auto& given = options.horizon_weight(); !given.empty()) {
    TORCH_CHECK_VALUE(static_cast<int64_t>(given.size()) == y.size(1), name_,
                      ": expected one horizon_weight for each of the ", y.size(1), " steps, got ",
                      given.size());
    const at::Tensor steps =
        at::tensor(given, at::kFloat).to(y.scalar_type()).unsqueeze(-1).expand_as(y);
    weights = weights.defined() ? weights * steps : steps;
  }
  if (!weights.defined()) return values(y).mean();
  // Values with weight 0, NaN included, reach neither the sum nor the gradient.
  const at::Tensor counts = weights != 0;
  const at::Tensor weighted = at::where(counts, values(at::where(counts, y, 0.0)) * weights, 0.0);
  const at::Tensor total = weights.sum();
  return weighted.sum() / at::where(total == 0, 1.0, total);
}

PointLoss::PointLoss(std::string name, LossOptions options_, std::vector<std::string> output_names,
                     Errors errors)
    : Loss(std::move(name), std::move(options_), static_cast<int64_t>(output_names.size()),
           output_names),
      errors_(std::move(errors)) {}

at::Tensor PointLoss::domain_map(const at::Tensor& output) const {
  const at::Tensor mapped = by_output(output);
  return name() == "MQLoss" ? mapped.transpose(2, 3) : mapped.squeeze(2);
}

at::Tensor PointLoss::operator()(const at::Tensor& y, const at::Tensor& y_hat,
                                 const at::Tensor& mask) const {
  const bool quantiles = name() == "MQLoss";
  std::vector<int64_t> expected = y.sizes().vec();
  if (quantiles) expected.push_back(outputsize_multiplier());
  TORCH_CHECK_VALUE(y.dim() == 3 && y_hat.sizes() == at::IntArrayRef(expected), name(),
                    ": expected y [batch, h, series] and y_hat ",
                    quantiles ? "[batch, h, series, outputs]" : "[batch, h, series]", ", got ",
                    y.sizes(), " and ", y_hat.sizes());
  check_dtypes(name(), y, y_hat);
  const at::Tensor mean =
      weighted_mean(y, mask, [&](const at::Tensor& truth) { return errors_(truth, y_hat); });
  return name() == "RMSE" ? mean.sqrt() : mean;
}

at::Tensor PointLoss::training_loss(const at::Tensor& output, const at::Tensor& y,
                                    const WindowScaling& scaling, const at::Tensor& mask) const {
  return (*this)(scaling.transform(y), domain_map(output), mask);
}

at::Tensor PointLoss::validation_loss(const at::Tensor& output, const at::Tensor& y,
                                      const WindowScaling& scaling, const at::Tensor& mask) const {
  return (*this)(y, scaling.inverse_transform(domain_map(output)), mask);
}

at::Tensor PointLoss::forecast(const at::Tensor& output, const WindowScaling& scaling) const {
  const at::Tensor values = scaling.inverse_transform(domain_map(output));
  return values.dim() == 4 ? values : values.unsqueeze(-1);
}

const std::vector<std::string>& loss_names() {
  static const std::vector<std::string> names{
      "DistributionLoss", "HuberLoss", "MAE",  "MAPE", "MQLoss", "MSE",
      "QuantileLoss",     "RMSE",      "SMAPE"};
  return names;
}

std::shared_ptr<Loss> make_loss(const std::string& name, LossOptions options) {
  if (name == "DistributionLoss") return std::make_shared<DistributionLoss>(std::move(options));
  const std::vector<std::string>& distributions = distribution_names();
  if (std::find(distributions.begin(), distributions.end(), name) != distributions.end()) {
    return std::make_shared<DistributionLoss>(options.distribution(name));
  }
  const std::shared_ptr<Loss> loss = make_point_loss(name, std::move(options));
  TORCH_CHECK_VALUE(loss != nullptr, "make_loss: expected one of ", joined(loss_names()),
                    ", or for DistributionLoss the name of a distribution (", joined(distributions),
                    "); got \"", name, "\"");
  return loss;
}

}  // namespace flash::models
