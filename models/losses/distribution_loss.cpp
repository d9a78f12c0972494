#include <flash_attention/models/losses.h>
#include <torch/torch.h>

#include <algorithm>
#include <utility>

#include "losses/distributions.h"
#include "losses/loss_columns.h"

namespace flash::models {
namespace {

const char* const kDistributionLoss = "DistributionLoss";

const Distribution& find_distribution(const std::string& name) {
  std::string known;
  for (const Distribution* distribution : distributions()) {
    if (distribution->name() == name) return *distribution;
    known += (known.empty() ? "" : ", ") + std::string(distribution->name());
  }
  TORCH_CHECK_VALUE(false, kDistributionLoss, ": expected distribution to be one of ", known,
                    "; got \"", name, "\"");
}

Columns columns_of(LossOptions options) {
  std::sort(options.quantiles().begin(), options.quantiles().end());
  return quantile_columns(kDistributionLoss, options);
}

std::vector<std::string> forecast_names(const LossOptions& options) {
  std::vector<std::string> names = columns_of(options).names;
  names.insert(names.begin(), "");
  if (options.return_params()) {
    const auto parameters = find_distribution(options.distribution()).parameter_names();
    names.insert(names.end(), parameters.begin(), parameters.end());
  }
  return names;
}

int64_t parameter_count(const LossOptions& options) {
  return static_cast<int64_t>(find_distribution(options.distribution()).parameter_names().size());
}

}  // namespace

DistributionLoss::DistributionLoss(LossOptions options_)
    : Loss(kDistributionLoss, options_, parameter_count(options_), forecast_names(options_)),
      distribution_(&find_distribution(options.distribution())),
      quantiles_(columns_of(options).quantiles) {}

std::vector<at::Tensor> DistributionLoss::domain_map(const at::Tensor& output) const {
  return by_output(output).unbind(2);
}

std::vector<at::Tensor> DistributionLoss::scale_decouple(const std::vector<at::Tensor>& raw,
                                                         const WindowScaling& scaling) const {
  check_count(raw);
  return distribution_->scale_decouple(raw, scaling.loc, scaling.scale);
}

at::Tensor DistributionLoss::operator()(const at::Tensor& y,
                                        const std::vector<at::Tensor>& parameters,
                                        const at::Tensor& mask) const {
  check_count(parameters);
  for (const at::Tensor& parameter : parameters) {
    TORCH_CHECK_VALUE(y.dim() == 3 && parameter.sizes() == y.sizes(), kDistributionLoss,
                      ": expected y and parameters of shape [batch, h, series], got ", y.sizes(),
                      " and ", parameter.sizes());
    check_dtypes(kDistributionLoss, y, parameter);
  }
  distribution_->check_parameters(parameters);
  return weighted_mean(y, mask, [&](const at::Tensor& truth) {
    TORCH_CHECK_VALUE(distribution_->in_support(truth).all().item<bool>(), kDistributionLoss, "(",
                      distribution_->name(), "): expected every y that is not masked to be ",
                      distribution_->support(), ", got ", truth.min().item<double>(), " to ",
                      truth.max().item<double>());
    return -distribution_->log_prob(parameters, truth);
  });
}

at::Tensor DistributionLoss::mean(const std::vector<at::Tensor>& parameters) const {
  check_count(parameters);
  return distribution_->mean(parameters);
}

at::Tensor DistributionLoss::quantiles(const std::vector<at::Tensor>& parameters,
                                       const std::vector<double>& quantiles) const {
  check_count(parameters);
  check_quantiles(kDistributionLoss, quantiles);
  const at::NoGradGuard no_grad;
  std::vector<at::Tensor> exact;
  for (const at::Tensor& parameter : parameters) exact.push_back(parameter.to(at::kDouble));
  std::vector<at::Tensor> columns;
  for (const double q : quantiles) columns.push_back(distribution_->quantile(exact, q));
  return at::stack(columns, -1).to(parameters.front().scalar_type());
}

at::Tensor DistributionLoss::training_loss(const at::Tensor& output, const at::Tensor& y,
                                           const WindowScaling& scaling,
                                           const at::Tensor& mask) const {
  return (*this)(y, scale_decouple(domain_map(output), scaling), mask);
}

at::Tensor DistributionLoss::validation_loss(const at::Tensor& output, const at::Tensor& y,
                                             const WindowScaling& scaling,
                                             const at::Tensor& mask) const {
  return training_loss(output, y, scaling, mask);
}

at::Tensor DistributionLoss::forecast(const at::Tensor& output,
                                      const WindowScaling& scaling) const {
  const std::vector<at::Tensor> parameters = scale_decouple(domain_map(output), scaling);
  std::vector<at::Tensor> columns{mean(parameters).unsqueeze(-1),
                                  quantiles(parameters, quantiles_)};
  if (options.return_params()) columns.push_back(at::stack(parameters, -1));
  return at::cat(columns, -1);
}

void DistributionLoss::check_count(const std::vector<at::Tensor>& tensors) const {
  TORCH_CHECK_VALUE(static_cast<int64_t>(tensors.size()) == outputsize_multiplier(),
                    kDistributionLoss, "(", distribution_->name(), "): expected ",
                    outputsize_multiplier(), " tensors, one for each parameter, got ",
                    tensors.size());
}

const std::vector<std::string>& distribution_names() {
  static const std::vector<std::string> names = [] {
    std::vector<std::string> all;
    for (const Distribution* distribution : distributions()) all.push_back(distribution->name());
    return all;
  }();
  return names;
}

}  // namespace flash::models
