#include "train/output/forecast_table.h"

#include <torch/torch.h>

#include <charconv>

#include "data/csv_reader.h"
#include "storage/atomic_file.h"
#include "train/output/evaluation.h"

namespace flash::models {
namespace {

/// The parts of one series' forecasts, before they are concatenated.
struct Parts {
  std::vector<std::string> labels;
  at::Tensor past;
  std::vector<at::Tensor> truth, forecast, naive, seasonal_naive;
};

/// Indices of windows that are `horizon` rows apart in each series, int64.
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

void add_batch(std::vector<Parts>& parts, const TableForecaster& forecaster,
               const WindowDataset& windows, const std::vector<Series>& series,
               const at::Tensor& indices, bool truth_is_known) {
  const WindowBatch batch = windows.batch(indices);
  const int64_t horizon = forecaster.settings.horizon;
  const at::Tensor forecast = forecaster.forecast(batch);
  for (int64_t b = 0; b < batch.series.size(0); ++b) {
    const int64_t row = windows.first_future_row(indices[b].item<int64_t>());
    for (int64_t n = 0; n < batch.series.size(1); ++n) {
      const auto number = static_cast<size_t>(batch.series[b][n].item<int64_t>());
      const ColumnScaler& scaler = forecaster.scalers.at(series[number].name);
      Parts& one = parts[number];
      // Known values come from the table, because scaling to float32 and back loses digits.
      const at::Tensor target = series[number].values[0];
      const at::Tensor past = target.slice(0, row - forecaster.settings.input_size, row);
      const auto repeated = [&](auto forecast_of, auto... arguments) {
        return forecast_of(past.view({1, -1, 1}), horizon, arguments...).flatten();
      };
      if (!one.past.defined()) one.past = past;
      if (truth_is_known) one.truth.push_back(target.slice(0, row, row + horizon));
      one.forecast.push_back(forecast[b].select(1, n).to(torch::kDouble) * scaler.deviation[0] +
                             scaler.mean[0]);
      one.naive.push_back(repeated(naive_forecast));
      one.seasonal_naive.push_back(repeated(seasonal_naive_forecast, forecaster.data.season));
      for (int64_t i = row; i < row + horizon; ++i) one.labels.push_back(series[number].label(i));
    }
  }
}

/// The shortest text that parses to the same number.
void add_number(std::string& text, double value) {
  char digits[32];
  const auto end = std::to_chars(digits, digits + sizeof(digits), value).ptr;
  text.append(digits, end);
}

}  // namespace

ForecastTable forecast_windows(const TableForecaster& forecaster, const WindowDataset& windows,
                               const std::vector<Series>& series, bool truth_is_known,
                               int64_t batch_size) {
  torch::manual_seed(0);  // as evaluate does
  forecaster.train(false);
  std::vector<Parts> parts(series.size());
  const at::Tensor chosen =
      without_overlap(windows, forecaster.settings.horizon, forecaster.together());
  for (const at::Tensor& indices : batches(chosen, batch_size)) {
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
  AtomicFile file(path);
  std::string text = "column,time,";
  if (table.series.front().truth.defined()) text += "truth,";
  for (const std::string& column : table.columns) text += "forecast" + column + ',';
  text += "naive,seasonal_naive\n";
  for (const SeriesForecast& series : table.series) {
    std::vector<at::Tensor> columns;
    if (series.truth.defined()) columns.push_back(series.truth.unsqueeze(1));
    columns.insert(columns.end(), {series.forecast, series.naive.unsqueeze(1),
                                   series.seasonal_naive.unsqueeze(1)});
    const at::Tensor values = at::cat(columns, 1).contiguous();
    const auto value = values.accessor<double, 2>();
    for (int64_t row = 0; row < values.size(0); ++row) {
      text += quoted(series.name) + ',' + quoted(series.labels[static_cast<size_t>(row)]);
      for (int64_t i = 0; i < values.size(1); ++i) add_number(text += ',', value[row][i]);
      text += '\n';
    }
    file.write(text);
    text.clear();
  }
  file.commit();
}

}  // namespace flash::models
