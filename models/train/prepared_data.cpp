#include "train/prepared_data.h"

#include <ATen/ATen.h>

namespace flash::models {
namespace {

std::vector<TimeSplit> split(const std::vector<Series>& panel, const Forecaster& forecaster) {
  std::vector<TimeSplit> splits;
  for (const Series& series : panel) {
    splits.push_back(split_by_time(series.values.size(1), forecaster.data.split,
                                   forecaster.settings.input_size, forecaster.settings.horizon));
  }
  return splits;
}

at::Tensor static_columns(const std::vector<Series>& panel) {
  std::vector<at::Tensor> rows;
  for (const Series& series : panel) rows.push_back(series.stat);
  return at::stack(rows, 1);
}

const ColumnScaler& scaler_of(const Forecaster& forecaster, const std::string& name) {
  const auto found = forecaster.scalers.find(name);
  if (found == forecaster.scalers.end()) {
    std::string known;
    for (const auto& entry : forecaster.scalers) {
      known += (known.empty() ? "" : ", ") + entry.first;
    }
    TORCH_CHECK_VALUE(false, "expected series that the model was trained on (", known, "), got ",
                      name);
  }
  return found->second;
}

/// Past and future of the known rows scaled; rows beyond them hold only what is known of the
/// future.
std::shared_ptr<const SeriesStore> scaled(const std::vector<Series>& panel,
                                          const Forecaster& forecaster) {
  TORCH_CHECK_VALUE(!forecaster.together() || panel.size() == forecaster.scalers.size(),
                    "expected the ", forecaster.scalers.size(),
                    " series that the model sees together, got ", panel.size());
  std::vector<at::Tensor> values;
  for (const Series& series : panel) {
    values.push_back(scaler_of(forecaster, series.name).transform(series.values));
  }
  const auto futr = static_cast<int64_t>(forecaster.data.columns.futr_exog.size());
  return std::make_shared<SeriesStore>(
      values, forecaster.stat_scaler.transform(static_columns(panel)).t(), futr);
}

}  // namespace

std::vector<RowRange> PreparedData::part(RowRange TimeSplit::* which) const {
  std::vector<RowRange> ranges;
  for (const TimeSplit& one : splits) ranges.push_back(one.*which);
  return ranges;
}

PreparedData prepare_training(std::vector<Series> series, Forecaster& forecaster) {
  PreparedData data{.series = std::move(series), .splits = {}, .store = nullptr};
  data.splits = split(data.series, forecaster);
  const bool standardise = forecaster.data.table_scaler == "standard";
  for (size_t i = 0; i < data.series.size(); ++i) {
    const Series& one = data.series[i];
    const RowRange train = data.splits[i].train;
    const at::Tensor values = one.values.slice(1, train.begin, train.end);
    const bool is_new = forecaster.scalers
                            .emplace(one.name, standardise ? ColumnScaler::fit(values)
                                                           : ColumnScaler::identity(values.size(0)))
                            .second;
    TORCH_CHECK_VALUE(is_new, "expected series of different names, got ", one.name, " twice");
  }
  const at::Tensor stat = static_columns(data.series);
  forecaster.stat_scaler =
      standardise ? ColumnScaler::fit(stat) : ColumnScaler::identity(stat.size(0));
  data.store = scaled(data.series, forecaster);
  return data;
}

PreparedData prepare_evaluation(std::vector<Series> series, const Forecaster& forecaster) {
  PreparedData data{.series = std::move(series), .splits = {}, .store = nullptr};
  data.splits = split(data.series, forecaster);
  data.store = scaled(data.series, forecaster);
  return data;
}

PreparedData prepare_forecast(std::vector<Series> series, const Forecaster& forecaster) {
  for (const Series& one : series) {
    TORCH_CHECK_VALUE(one.known >= forecaster.settings.input_size, "expected at least ",
                      forecaster.settings.input_size, " rows of ", one.name,
                      ", which the model looks back at, got ", one.known);
  }
  PreparedData data{.series = std::move(series), .splits = {}, .store = nullptr};
  data.store = scaled(data.series, forecaster);
  return data;
}

WindowDataset windows_of(const PreparedData& data, const std::vector<RowRange>& rows,
                         const Forecaster& forecaster) {
  return WindowDataset(data.store, rows, /*past_inside=*/rows.front().begin == 0,
                       {.input_size = forecaster.settings.input_size,
                        .horizon = forecaster.settings.horizon,
                        .together = forecaster.together()});
}

WindowDataset last_windows(const PreparedData& data, const Forecaster& forecaster) {
  std::vector<RowRange> rows;
  for (const Series& one : data.series) {
    rows.push_back({one.known, one.known + forecaster.settings.horizon});
  }
  return windows_of(data, rows, forecaster);
}

std::string fingerprint(const PreparedData& data) {
  const at::Tensor values = data.store->values.contiguous();
  const auto* bytes = static_cast<const unsigned char*>(values.const_data_ptr());
  uint64_t hash = 0xcbf29ce484222325;  // FNV-1a
  for (size_t i = 0; i < values.nbytes(); ++i) hash = (hash ^ bytes[i]) * 0x100000001b3;
  return std::to_string(hash);
}

}  // namespace flash::models
