#include "train/output/evaluation.h"

#include <torch/torch.h>

#include <algorithm>

namespace flash::models {
namespace {

/// Sums of absolute and squared errors, per series.
struct ErrorSums {
  explicit ErrorSums(int64_t series)
      : absolute(torch::zeros({series}, torch::kDouble)), squared(absolute.clone()) {}

  /// median, mean, truth [B, h, N]; series [B, N]
  void add(const torch::Tensor& median, const torch::Tensor& mean, const torch::Tensor& truth,
           const torch::Tensor& series) {
    const torch::Tensor exact = truth.to(torch::kDouble);
    const torch::Tensor indices = series.flatten();
    absolute.index_add_(0, indices, (median.to(torch::kDouble) - exact).abs().sum(1).flatten());
    squared.index_add_(0, indices, (mean.to(torch::kDouble) - exact).square().sum(1).flatten());
  }

  Errors mean(const torch::Tensor& counts) const {
    const auto count = counts.sum().item<double>();
    return {absolute.sum().item<double>() / count, squared.sum().item<double>() / count};
  }

  torch::Tensor absolute, squared;
};

torch::Tensor column(const torch::Tensor& forecast, int64_t index) {
  return forecast.select(3, index);
}

int64_t find(const std::vector<std::string>& names, const std::string& name) {
  const auto found = std::find(names.begin(), names.end(), name);
  return found == names.end() ? -1 : found - names.begin();
}

}  // namespace

ForecastColumns::ForecastColumns(const std::vector<std::string>& names) {
  median = find(names, "-median");
  mean = find(names, "");
  if (median < 0) median = std::max<int64_t>(mean, 0);
  if (mean < 0) mean = median;
  const std::string low = "-lo-";
  for (size_t i = 0; i < names.size(); ++i) {
    if (!names[i].starts_with(low)) continue;
    const std::string level = names[i].substr(low.size());
    const int64_t high = find(names, "-hi-" + level);
    if (high >= 0) intervals.push_back({level, static_cast<int64_t>(i), high});
  }
  std::sort(intervals.begin(), intervals.end(), [](const Interval& a, const Interval& b) {
    return std::stod(a.level) > std::stod(b.level);
  });
}

at::Tensor naive_forecast(const at::Tensor& past, int64_t horizon) {
  return past.slice(1, -1).expand({-1, horizon, -1});
}

at::Tensor seasonal_naive_forecast(const at::Tensor& past, int64_t horizon, int64_t season) {
  TORCH_CHECK_VALUE(season >= 1 && season <= past.size(1),
                    "expected a season between 1 and the input size ", past.size(1), ", got ",
                    season);
  const at::Tensor step = torch::arange(horizon).remainder(season);
  return past.slice(1, past.size(1) - season).index_select(1, step);
}

std::vector<at::Tensor> batches(const at::Tensor& indices, int64_t batch_size) {
  // split() adds the two numbers, which overflows near 2^63.
  return indices.split(std::clamp<int64_t>(batch_size, 1, std::max<int64_t>(1, indices.size(0))));
}

std::optional<ValidationErrors> validate(const TableForecaster& forecaster,
                                         const WindowDataset& windows, int64_t batch_size,
                                         Processes& processes,
                                         const std::function<bool()>& interrupted) {
  forecaster.train(false);
  const ForecastColumns columns(forecaster.loss->output_names());
  ErrorSums sums(windows.series());
  double loss = 0.0;
  int64_t elements = 0, turn = 0;
  for (const torch::Tensor& indices : batches(torch::arange(windows.size()), batch_size)) {
    if (processes.alone() && interrupted()) return std::nullopt;
    if (turn++ % processes.count() != processes.rank()) continue;
    const WindowBatch batch = windows.batch(indices);
    const TableForecaster::Judged judged = forecaster.judge(batch);
    loss += judged.loss * static_cast<double>(indices.size(0));
    sums.add(column(judged.forecast, columns.median), column(judged.forecast, columns.mean),
             batch.future, batch.series);
    elements += batch.future.numel();
  }
  sums.absolute = processes.sum(sums.absolute);
  sums.squared = processes.sum(sums.squared);
  const torch::Tensor totals =
      processes.sum(torch::tensor({loss, static_cast<double>(elements)}, torch::kDouble));
  return ValidationErrors{totals[0].item<double>() / static_cast<double>(windows.size()),
                          sums.mean(totals[1])};
}

Evaluation evaluate(const TableForecaster& forecaster, const WindowDataset& windows,
                    const std::vector<Series>& series, int64_t batch_size) {
  torch::manual_seed(0);
  forecaster.train(false);
  const ForecastColumns columns(forecaster.loss->output_names());
  const int64_t horizon = forecaster.settings.horizon;
  ErrorSums of_model(windows.series()), of_naive(windows.series()), of_seasonal(windows.series());
  torch::Tensor counts = torch::zeros({windows.series()}, torch::kDouble);
  std::vector<int64_t> inside(columns.intervals.size(), 0);
  for (const torch::Tensor& indices : batches(torch::arange(windows.size()), batch_size)) {
    const WindowBatch batch = windows.batch(indices);
    const torch::Tensor forecast = forecaster.forecast(batch);
    const auto add = [&](ErrorSums& sums, const torch::Tensor& median, const torch::Tensor& mean) {
      sums.add(median, mean, batch.future, batch.series);
    };
    add(of_model, column(forecast, columns.median), column(forecast, columns.mean));
    const torch::Tensor& past = batch.inputs.insample_y;
    const torch::Tensor naive = naive_forecast(past, horizon);
    add(of_naive, naive, naive);
    const torch::Tensor seasonal = seasonal_naive_forecast(past, horizon, forecaster.data.season);
    add(of_seasonal, seasonal, seasonal);
    counts.index_add_(
        0, batch.series.flatten(),
        torch::full({batch.series.numel()}, static_cast<double>(horizon), torch::kDouble));
    for (size_t i = 0; i < inside.size(); ++i) {
      inside[i] += (batch.future.ge(column(forecast, columns.intervals[i].low)) &
                    batch.future.le(column(forecast, columns.intervals[i].high)))
                       .sum()
                       .item<int64_t>();
    }
  }
  Evaluation evaluation{.windows = windows.size(),
                        .model = of_model.mean(counts),
                        .naive = of_naive.mean(counts),
                        .seasonal_naive = of_seasonal.mean(counts),
                        .coverage = {},
                        .series = {}};
  for (size_t i = 0; i < inside.size(); ++i) {
    evaluation.coverage.push_back(
        {columns.intervals[i].level, static_cast<double>(inside[i]) / counts.sum().item<double>()});
  }
  for (size_t i = 0; i < series.size(); ++i) {
    const auto number = static_cast<int64_t>(i);
    const double unit = forecaster.scalers.at(series[i].name).deviation[0].item<double>() /
                        counts[number].item<double>();
    const auto in_units = [&](const ErrorSums& sums) {
      return sums.absolute[number].item<double>() * unit;
    };
    evaluation.series.push_back(
        {series[i].name, in_units(of_model), in_units(of_naive), in_units(of_seasonal)});
  }
  return evaluation;
}

}  // namespace flash::models
