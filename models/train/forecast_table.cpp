#include "train/forecast_table.h"

#include <torch/torch.h>

#include <cerrno>
#include <cstring>
#include <fstream>

#include "data/csv_reader.h"
#include "train/evaluation.h"

namespace flash::models {
namespace {

/// What is collected of one series before it is put together.
struct Parts {
  std::vector<std::string> labels;
  at::Tensor past;
  std::vector<at::Tensor> truth, forecast, naive, seasonal_naive;
};

/// Windows of each series `horizon` rows apart, int64.
at::Tensor without_overlap(const WindowDataset& windows, int64_t horizon, bool together) {
  std::vector<int64_t> chosen;
  std::vector<int64_t> next(static_cast<size_t>(windows.series()), -1);
  for (int64_t i = 0; i < windows.size(); ++i) {
    int64_t& wanted = next[static_cast<size_t>(together ? 0 : windows.first_series(i))];
    const int64_t row = windows.first_future_row(i);
    if (wanted >= 0 && row != wanted) continue;
    wanted = row + horizon;
    chosen.push_back(i);
  }
  return torch::tensor(chosen, torch::kLong);
}

void add_batch(std::vector<Parts>& parts, const Forecaster& forecaster,
               const WindowDataset& windows, const std::vector<Series>& series,
               const at::Tensor& indices, bool truth_is_known) {
  const WindowBatch batch = windows.batch(indices);
  const int64_t horizon = forecaster.settings.horizon;
  const at::Tensor forecast = forecaster.forecast(batch);
  const at::Tensor& past = batch.inputs.insample_y;
  const at::Tensor naive = naive_forecast(past, horizon);
  const at::Tensor seasonal = seasonal_naive_forecast(past, horizon, forecaster.data.season);
  for (int64_t b = 0; b < batch.series.size(0); ++b) {
    const int64_t row = windows.first_future_row(indices[b].item<int64_t>());
    for (int64_t n = 0; n < batch.series.size(1); ++n) {
      const auto number = static_cast<size_t>(batch.series[b][n].item<int64_t>());
      const ColumnScaler& scaler = forecaster.scalers.at(series[number].name);
      const auto in_units = [&](const at::Tensor& scaled) {
        return scaled[b].select(1, n).to(torch::kDouble) * scaler.deviation[0] + scaler.mean[0];
      };
      Parts& one = parts[number];
      if (!one.past.defined()) one.past = in_units(past);
      if (truth_is_known) one.truth.push_back(in_units(batch.future));
      one.forecast.push_back(in_units(forecast));
      one.naive.push_back(in_units(naive));
      one.seasonal_naive.push_back(in_units(seasonal));
      const auto begin = series[number].labels.begin() + row;
      one.labels.insert(one.labels.end(), begin, begin + horizon);
    }
  }
}

}  // namespace

ForecastTable forecast_windows(const Forecaster& forecaster, const WindowDataset& windows,
                               const std::vector<Series>& series, bool truth_is_known,
                               int64_t batch_size) {
  torch::manual_seed(0);  // as evaluate does
  forecaster.train(false);
  std::vector<Parts> parts(series.size());
  const at::Tensor chosen =
      without_overlap(windows, forecaster.settings.horizon, forecaster.together());
  for (const at::Tensor& indices : chosen.split(batch_size)) {
    add_batch(parts, forecaster, windows, series, indices, truth_is_known);
  }
  ForecastTable table{.columns = forecaster.loss->output_names(),
                      .horizon = forecaster.settings.horizon,
                      .series = {}};
  for (size_t i = 0; i < series.size(); ++i) {
    Parts& one = parts[i];
    table.series.push_back({.name = series[i].name,
                            .labels = std::move(one.labels),
                            .past = one.past,
                            .truth = truth_is_known ? at::cat(one.truth) : at::Tensor(),
                            .forecast = at::cat(one.forecast),
                            .naive = at::cat(one.naive),
                            .seasonal_naive = at::cat(one.seasonal_naive)});
  }
  return table;
}

void write_forecast_csv(const std::string& path, const ForecastTable& table) {
  std::ofstream stream(path);
  stream << "column,time,";
  if (table.series.front().truth.defined()) stream << "truth,";
  for (const std::string& column : table.columns) stream << "forecast" << column << ',';
  stream << "naive,seasonal_naive\n";
  for (const SeriesForecast& series : table.series) {
    std::vector<at::Tensor> columns;
    if (series.truth.defined()) columns.push_back(series.truth.unsqueeze(1));
    columns.insert(columns.end(), {series.forecast, series.naive.unsqueeze(1),
                                   series.seasonal_naive.unsqueeze(1)});
    const at::Tensor values = at::cat(columns, 1).contiguous();
    const auto value = values.accessor<double, 2>();
    for (int64_t row = 0; row < values.size(0); ++row) {
      stream << quoted(series.name) << ',' << quoted(series.labels[static_cast<size_t>(row)]);
      for (int64_t i = 0; i < values.size(1); ++i) stream << ',' << value[row][i];
      stream << '\n';
    }
  }
  stream.close();
  TORCH_CHECK_VALUE(stream, path, ": cannot be written: ", std::strerror(errno));
}

}  // namespace flash::models
