#include <flash_attention/models/temporal_norm.h>
#include <torch/torch.h>

#include <limits>
#include <utility>

namespace flash::models {
namespace {

/// Median absolute deviation of the standard normal distribution.
constexpr double kMedianDeviation = 0.6744897501960817;

struct Statistics {
  at::Tensor shift;
  at::Tensor spread;
};

const std::vector<std::pair<std::string, Scaler>>& scalers() {
  static const std::vector<std::pair<std::string, Scaler>> all{
      {"identity", Scaler::kIdentity}, {"invariant", Scaler::kInvariant},
      {"minmax", Scaler::kMinMax},     {"minmax1", Scaler::kMinMax1},
      {"revin", Scaler::kRevIN},       {"robust", Scaler::kRobust},
      {"standard", Scaler::kStandard}};
  return all;
}

Scaler scaler_of(const std::string& scaler_type) {
  for (const auto& [name, scaler] : scalers()) {
    if (name == scaler_type) return scaler;
  }
  std::string known;
  for (const std::string& name : scaler_types()) known += (known.empty() ? "" : ", ") + name;
  TORCH_CHECK_VALUE(false, "TemporalNorm: expected scaler_type to be one of ", known, "; got \"",
                    scaler_type, "\"");
}

/// `values` with NaN where they are not observed.
at::Tensor observed(const at::Tensor& values, const at::Tensor& mask) {
  if (!mask.defined()) return values;
  return values.masked_fill(mask < 1, std::numeric_limits<double>::quiet_NaN());
}

at::Tensor observed_mean(const at::Tensor& values, int64_t dim) {
  return values.nanmean(dim, /*keepdim=*/true).nan_to_num(0.0);
}

at::Tensor observed_median(const at::Tensor& values, int64_t dim) {
  return std::get<0>(values.nanmedian(dim, /*keepdim=*/true)).nan_to_num(0.0);
}

at::Tensor deviation(const at::Tensor& values, int64_t dim) {
  return observed_mean((values - observed_mean(values, dim)).square(), dim).sqrt();
}

/// `spread` with 1 in place of 0, plus eps.
at::Tensor divisor(const at::Tensor& spread, double eps) {
  return at::where(spread == 0, 1.0, spread) + eps;
}

Statistics standard(const at::Tensor& values, int64_t dim, double eps) {
  return {observed_mean(values, dim), divisor(deviation(values, dim), eps)};
}

Statistics robust(const at::Tensor& values, int64_t dim, double eps) {
  const at::Tensor middle = observed_median(values, dim);
  const at::Tensor spread = observed_median((values - middle).abs(), dim);
  const at::Tensor substitute = kMedianDeviation * deviation(values, dim);
  return {middle, divisor(at::where(spread == 0, substitute, spread), eps)};
}

Statistics range(const at::Tensor& values, int64_t dim, double eps) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  const at::Tensor left_out = values.isnan();
  const at::Tensor nothing = left_out.all(dim, /*keepdim=*/true);
  const at::Tensor low =
      values.masked_fill(left_out, kInfinity).amin(dim, true).masked_fill(nothing, 0.0);
  const at::Tensor high =
      values.masked_fill(left_out, -kInfinity).amax(dim, true).masked_fill(nothing, 0.0);
  return {low, divisor(high - low, eps)};
}

/// Over `dim`, ignoring NaN.
Statistics statistics_of(Scaler scaler, const at::Tensor& values, int64_t dim, double eps) {
  switch (scaler) {
    case Scaler::kStandard:
    case Scaler::kRevIN:
      return standard(values, dim, eps);
    case Scaler::kRobust:
    case Scaler::kInvariant:
      return robust(values, dim, eps);
    case Scaler::kMinMax:
    case Scaler::kMinMax1:
      return range(values, dim, eps);
    case Scaler::kIdentity:
      break;
  }
  return {};
}

at::Tensor scaled_by(Scaler scaler, const at::Tensor& values, const Statistics& statistics) {
  if (scaler == Scaler::kIdentity) return values;
  const at::Tensor z = (values - statistics.shift) / statistics.spread;
  if (scaler == Scaler::kMinMax1) return 2.0 * z - 1.0;
  if (scaler == Scaler::kInvariant) return z.asinh();
  return z;
}

void check_windows(const WindowsBatch& windows) {
  const at::Tensor& y = windows.insample_y;
  TORCH_CHECK_VALUE(y.defined() && y.dim() == 3 && y.size(1) >= 1,
                    "TemporalNorm: expected insample_y [batch, input_size, series], got ",
                    y.defined() ? c10::str(y.sizes()) : std::string("nothing"));
  TORCH_CHECK_TYPE(y.scalar_type() == at::kFloat || y.scalar_type() == at::kDouble,
                   "TemporalNorm: expected insample_y of float32 or float64, got ",
                   y.scalar_type());
  const at::Tensor& mask = windows.insample_mask;
  TORCH_CHECK_VALUE(!mask.defined() || mask.sizes() == y.sizes(),
                    "TemporalNorm: expected insample_mask of insample_y's shape ", y.sizes(),
                    ", got ", mask.sizes());
  const int64_t batch = y.size(0), steps = y.size(1), series = y.size(2);
  const at::Tensor& past = windows.hist_exog;
  TORCH_CHECK_VALUE(!past.defined() || (series == 1 && past.dim() == 3 && past.size(0) == batch &&
                                        past.size(1) == steps),
                    "TemporalNorm: expected hist_exog [", batch, ", ", steps,
                    ", columns] beside one series, got ", past.sizes(), " beside ", series);
  const at::Tensor& both = windows.futr_exog;
  if (!both.defined()) return;
  const bool of_one =
      series == 1 && both.dim() == 3 && both.size(0) == batch && both.size(1) >= steps;
  const bool of_many =
      both.dim() == 4 && both.size(0) == batch && both.size(2) >= steps && both.size(3) == series;
  TORCH_CHECK_VALUE(of_one || of_many, "TemporalNorm: expected futr_exog [", batch, ", ", steps,
                    " + h, columns] of one series, or [", batch, ", columns, ", steps, " + h, ",
                    series, "], got ", both.sizes());
}

}  // namespace

const std::vector<std::string>& scaler_types() {
  static const std::vector<std::string> names = [] {
    std::vector<std::string> all;
    for (const auto& [name, scaler] : scalers()) all.push_back(name);
    return all;
  }();
  return names;
}

at::Tensor WindowScaling::transform(const at::Tensor& values) const {
  return scaled_by(scaler, values, {shift, spread});
}

at::Tensor WindowScaling::inverse_transform(const at::Tensor& scaled) const {
  if (scaler == Scaler::kIdentity) return scaled;
  const bool has_outputs = scaled.dim() == loc.dim() + 1;
  at::Tensor z = scaled;
  if (scaler == Scaler::kMinMax1) z = (z + 1.0) / 2.0;
  if (scaler == Scaler::kInvariant) z = z.sinh();
  return at::addcmul(has_outputs ? loc.unsqueeze(-1) : loc, z,
                     has_outputs ? scale.unsqueeze(-1) : scale);
}

TemporalNormImpl::TemporalNormImpl(TemporalNormOptions options_)
    : options(std::move(options_)), scaler_(scaler_of(options.scaler_type())) {
  TORCH_CHECK_VALUE(options.num_features() >= 1,
                    "TemporalNorm: expected num_features of at least 1, got ",
                    options.num_features());
  TORCH_CHECK_VALUE(options.eps() >= 0.0, "TemporalNorm: expected eps of at least 0, got ",
                    options.eps());
  reset();
}

void TemporalNormImpl::reset() {
  if (scaler_ != Scaler::kRevIN) return;
  const std::vector<int64_t> shape{1, 1, options.num_features(), 1};
  revin_bias_ = register_parameter("revin_bias", torch::zeros(shape));
  revin_weight_ = register_parameter("revin_weight", torch::ones(shape));
}

void TemporalNormImpl::pretty_print(std::ostream& stream) const {
  stream << "flash::models::TemporalNorm(" << options.scaler_type() << ")";
}

WindowScaling TemporalNormImpl::statistics(const at::Tensor& values, const at::Tensor& mask) const {
  TORCH_CHECK_VALUE(values.dim() == 3,
                    "TemporalNorm: expected values [batch, steps, columns], got ", values.sizes());
  const auto [shift, spread] =
      statistics_of(scaler_, observed(values, mask), /*dim=*/1, options.eps());
  WindowScaling scaling{
      .scaler = scaler_, .shift = shift, .spread = spread, .loc = shift, .scale = spread};
  if (scaler_ == Scaler::kRevIN) {
    scaling.loc = shift + revin_bias_.select(2, 0);
    scaling.scale = spread * (revin_weight_.select(2, 0).relu() + options.eps());
  }
  return scaling;
}

std::pair<WindowsBatch, WindowScaling> TemporalNormImpl::transform(
    const WindowsBatch& windows) const {
  check_windows(windows);
  if (scaler_ == Scaler::kIdentity) return {windows, {}};
  const at::Tensor& mask = windows.insample_mask;
  const int64_t steps = windows.insample_y.size(1);
  WindowsBatch scaled = windows;
  const WindowScaling scaling = statistics(windows.insample_y, mask);
  scaled.insample_y = scaling.transform(windows.insample_y);
  const auto by_past = [&](const at::Tensor& values, int64_t dim, const at::Tensor& available) {
    const at::Tensor past = observed(values.slice(dim, 0, steps), available);
    return scaled_by(scaler_, values, statistics_of(scaler_, past, dim, options.eps()));
  };
  if (windows.hist_exog.defined()) scaled.hist_exog = by_past(windows.hist_exog, 1, mask);
  if (windows.futr_exog.defined()) {
    const bool of_many = windows.futr_exog.dim() == 4;
    const at::Tensor available = of_many && mask.defined() ? mask.unsqueeze(1) : mask;
    scaled.futr_exog = by_past(windows.futr_exog, of_many ? 2 : 1, available);
  }
  return {scaled, scaling};
}

}  // namespace flash::models
