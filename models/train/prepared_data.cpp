#include "train/prepared_data.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "data/csv_reader.h"
#include "train/fnv1a.h"

namespace flash::models {
namespace {

at::Tensor static_columns(const std::vector<Series>& panel) {
  std::vector<at::Tensor> rows;
  for (const Series& series : panel) rows.push_back(series.stat);
  return at::stack(rows, 1);
}

const ColumnScaler& scaler_of(const TableForecaster& forecaster, const std::string& name) {
  const auto found = forecaster.scalers.find(name);
  if (found == forecaster.scalers.end()) {
    std::vector<std::string> known;
    for (const auto& entry : forecaster.scalers) known.push_back(entry.first);
    TORCH_CHECK_VALUE(false, "expected series that the model was trained on (", join(known),
                      "), got ", printable(name));
  }
  return found->second;
}

/// Series are stored separately, but a window takes the same rows of all of them, so their times
/// must agree.
void check_same_times(const std::vector<Series>& panel) {
  for (const Series& series : panel) {
    const TimeAxis &first = *panel[0].axis, &axis = *series.axis;
    const size_t rows = std::min(first.times.size(), axis.times.size());
    for (size_t i = 0; &axis != &first && i < rows; ++i) {
      TORCH_CHECK_VALUE(axis.times[i].value == first.times[i].value,
                        "expected series with the same times, because the model forecasts them "
                        "together, got ",
                        axis.labels[i], " in row ", i + 1, " of ", printable(series.name), " and ",
                        first.labels[i], " in that of ", printable(panel[0].name));
    }
  }
}

/// The values of a table are finite, but they or their squares may overflow in float32.
void check_finite(const std::vector<Series>& panel, const SeriesStore& store,
                  const TableForecaster& forecaster) {
  const PanelColumns& columns = forecaster.data.columns;
  constexpr const char* kAdvice =
      ", which once scaled are within the range of float32, got larger ones; divide the column "
      "by a power of ten";
  std::vector<std::string> names = columns.futr_exog;
  names.insert(names.end(), columns.hist_exog.begin(), columns.hist_exog.end());
  for (size_t i = 0; i < panel.size(); ++i) {
    const int64_t begin = store.begins[i];
    const at::Tensor good =
        store.values.slice(1, begin, begin + panel[i].values.size(1)).isfinite().all(1) &
        scaler_of(forecaster, panel[i].name).deviation.isfinite();
    for (int64_t row = 0; row < good.size(0); ++row) {
      TORCH_CHECK_VALUE(good[row].item<bool>(), "expected numbers in the ",
                        row == 0 ? "target of " : names[static_cast<size_t>(row) - 1] + " of ",
                        printable(panel[i].name), kAdvice);
    }
  }
  TORCH_CHECK_VALUE(store.stat.isfinite().all().item<bool>(), "expected numbers in ",
                    join(columns.stat_exog), kAdvice);
}

/// Scales the known rows and, of the rows after them, the columns that are known for the future.
std::shared_ptr<const SeriesStore> scaled(const std::vector<Series>& panel,
                                          const TableForecaster& forecaster) {
  TORCH_CHECK_VALUE(!forecaster.together() || panel.size() == forecaster.scalers.size(),
                    "expected the ", forecaster.scalers.size(),
                    " series that the model forecasts together, got ", panel.size());
  if (forecaster.together()) check_same_times(panel);
  std::vector<at::Tensor> values;
  for (const Series& series : panel) {
    values.push_back(scaler_of(forecaster, series.name).transform(series.values));
  }
  const auto futr = static_cast<int64_t>(forecaster.data.columns.futr_exog.size());
  const auto store = std::make_shared<SeriesStore>(
      values, forecaster.stat_scaler.transform(static_columns(panel)).t(), futr);
  check_finite(panel, *store, forecaster);
  return store;
}

}  // namespace

std::vector<TimeSplit> split_panel(const std::vector<Series>& panel, const SplitSettings& settings,
                                   const ModelSettings& model) {
  std::vector<TimeSplit> splits;
  for (const Series& series : panel) {
    splits.push_back(
        split_by_time(series.values.size(1), settings, model.input_size, model.horizon));
  }
  return splits;
}

std::vector<RowRange> PreparedData::part(RowRange TimeSplit::*which) const {
  std::vector<RowRange> ranges;
  for (const TimeSplit& one : splits) ranges.push_back(one.*which);
  return ranges;
}

PreparedData prepare_training(std::vector<Series> series, TableForecaster& forecaster) {
  PreparedData data{.series = std::move(series), .splits = {}, .store = nullptr};
  data.splits = split_panel(data.series, forecaster.data.split, forecaster.settings);
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

PreparedData prepare_evaluation(std::vector<Series> series, const TableForecaster& forecaster) {
  PreparedData data{.series = std::move(series), .splits = {}, .store = nullptr};
  data.splits = split_panel(data.series, forecaster.data.split, forecaster.settings);
  data.store = scaled(data.series, forecaster);
  return data;
}

PreparedData prepare_forecast(std::vector<Series> series, const TableForecaster& forecaster) {
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
                         const TableForecaster& forecaster) {
  return WindowDataset(data.store, rows, /*past_inside=*/rows.front().begin == 0,
                       {.input_size = forecaster.settings.input_size,
                        .horizon = forecaster.settings.horizon,
                        .together = forecaster.together()});
}

WindowDataset last_windows(const PreparedData& data, const TableForecaster& forecaster) {
  std::vector<RowRange> rows;
  for (const Series& one : data.series) {
    rows.push_back({one.known, one.known + forecaster.settings.horizon});
  }
  return windows_of(data, rows, forecaster);
}

std::string fingerprint(const PreparedData& data) {
  Fnv1a hash;
  for (const at::Tensor& tensor : {data.store->values, data.store->stat}) {
    hash.add(tensor.contiguous().const_data_ptr(), tensor.nbytes());
  }
  const TimeAxis* added = nullptr;  // the series of a wide table share one axis
  for (const Series& series : data.series) {
    hash.add(series.name.data(), series.name.size() + 1);
    if (series.axis.get() == added) continue;
    added = series.axis.get();
    for (const Timestamp& time : added->times) hash.add(&time.value, sizeof(time.value));
  }
  return std::to_string(hash.value());
}

}  // namespace flash::models
