#include "forecasting/forecast_windows.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "message_text.h"

namespace flash::models {
namespace {

std::string list_of(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + excerpt(name);
  return text;
}

/// Float64 in rows and columns; none of either where undefined.
at::Tensor to_columns(const at::Tensor& values) {
  const at::Tensor numbers = values.to(at::kDouble);
  return (numbers.dim() == 1 ? numbers.unsqueeze(1) : numbers).contiguous();
}

/// One series as float64, contiguous.
struct SeriesTensors {
  at::Tensor y;     // [rows, 1]
  at::Tensor futr;  // [rows + h, F] or undefined
  at::Tensor hist;  // [rows, X] or undefined
  at::Tensor stat;  // [S, 1] or undefined
};

/// Checks and converts the tensors of one series.
class SeriesReader {
 public:
  SeriesReader(const std::vector<RawSeries>& series, size_t index, const WindowShape& shape)
      : series_(series), index_(index), shape_(shape) {}

  SeriesTensors read() const {
    const RawSeries& one = series_[index_];
    const SeriesColumns& columns = shape_.columns;
    check(one.y.defined() && one.y.dim() == 1 && one.y.size(0) >= 1,
          "y [rows] with at least one row", one.y);
    const int64_t rows = one.y.size(0);
    SeriesTensors read{.y = finite("y", one.y), .futr = {}, .hist = {}, .stat = {}};
    read.futr = exogenous("futr_exog", one.futr_exog, columns.futr_exog, rows + shape_.horizon,
                          "rows + h = ");
    read.hist = exogenous("hist_exog", one.hist_exog, columns.hist_exog, rows, "rows = ");
    const auto statics = static_cast<int64_t>(columns.stat_exog.size());
    if (statics == 0) {
      refuse("stat_exog", one.stat_exog);
      return read;
    }
    check(one.stat_exog.defined() && one.stat_exog.dim() == 1 && one.stat_exog.size(0) == statics,
          c10::str("stat_exog [", statics, "] (", list_of(columns.stat_exog), ")"), one.stat_exog);
    read.stat = finite("stat_exog", one.stat_exog);
    return read;
  }

 private:
  void check(bool good, const std::string& expected, const at::Tensor& given) const {
    TORCH_CHECK_VALUE(good, "Forecaster: expected for ", describe_series(series_, index_), " ",
                      expected, ", got ",
                      given.defined() ? c10::str("a tensor ", given.sizes()) : "none");
  }

  void refuse(const char* name, const at::Tensor& given) const {
    check(!given.defined() || given.numel() == 0,
          std::string("no ") + name + ", of which the model has no columns", given);
  }

  at::Tensor exogenous(const char* name, const at::Tensor& given,
                       const std::vector<std::string>& columns, int64_t rows,
                       const char* length) const {
    if (columns.empty()) {
      refuse(name, given);
      return {};
    }
    const auto count = static_cast<int64_t>(columns.size());
    check(given.defined() && given.dim() == 2 && given.size(0) == rows && given.size(1) == count,
          c10::str(name, " [", length, rows, ", ", count, "] (", list_of(columns), ")"), given);
    return finite(name, given);
  }

  at::Tensor finite(const char* name, const at::Tensor& given) const {
    const bool real = !given.is_complex() && given.scalar_type() != at::kBool &&
                      given.layout() == at::kStrided && given.device().is_cpu();
    TORCH_CHECK_VALUE(real, "Forecaster: expected for ", describe_series(series_, index_), " ",
                      name, " as a dense CPU tensor of real numbers, got ", given.toString());
    const at::Tensor values = to_columns(given);
    const double* numbers = values.const_data_ptr<double>();
    const double* end = numbers + values.numel();
    const double* bad = std::find_if_not(numbers, end, [](double x) { return std::isfinite(x); });
    TORCH_CHECK_VALUE(bad == end, "Forecaster: expected for ", describe_series(series_, index_),
                      " finite numbers in ", name, ", got ", *bad, " in row ",
                      (bad - numbers) / values.size(1),
                      ", counted from 0; fill missing values or "
                      "drop the rows before them");
    return values;
  }

  const std::vector<RawSeries>& series_;
  size_t index_;
  const WindowShape& shape_;
};

/// Where a column goes: element t of it is at data[t * stride].
struct Target {
  float* data;
  int64_t stride;
};

/// Scales rows [first, first + count) of a column into `target`, after `padding` elements.
void fill_column(const Target& target, int64_t padding, const at::Tensor& values, int64_t column,
                 int64_t first, int64_t count, double shift, double spread) {
  const int64_t columns = values.size(1);
  const double* from = values.const_data_ptr<double>() + first * columns + column;
  float* to = target.data + padding * target.stride;
  for (int64_t t = 0; t < count; ++t) {
    to[t * target.stride] = static_cast<float>((from[t * columns] - shift) / spread);
  }
}

/// [columns, rows] of the past of all columns, to fit a scaler.
at::Tensor past_of(const SeriesTensors& columns) {
  std::vector<at::Tensor> parts{columns.y};
  const int64_t rows = columns.y.size(0);
  if (columns.futr.defined()) parts.push_back(columns.futr.slice(0, 0, rows));
  if (columns.hist.defined()) parts.push_back(columns.hist);
  return at::cat(parts, 1);
}

ColumnScaling scaling_of(const std::vector<RawSeries>& series, size_t index,
                         const SeriesTensors& columns, const SeriesScaling& scaling) {
  if (!scaling.local_type.empty()) return fit_local_scaler(scaling.local_type, past_of(columns));
  if (scaling.by_name.empty()) return {};
  const std::string& name = series[index].name;
  if (name.empty() && scaling.by_name.size() == 1) return scaling.by_name.begin()->second;
  const auto found = scaling.by_name.find(name);
  if (found != scaling.by_name.end()) return found->second;
  std::vector<std::string> names;
  for (const auto& entry : scaling.by_name) names.push_back(entry.first);
  TORCH_CHECK_VALUE(false, "Forecaster: expected for ", describe_series(series, index),
                    " the name of a series that the model was trained on (",
                    shortened(list_of(names)), "), whose scaler it takes, got ",
                    name.empty() ? "none" : excerpt(name));
}

/// The tensors of a batch, and where the columns of each series are in them.
class Batch {
 public:
  Batch(int64_t series, const WindowShape& shape)
      : together_(shape.together),
        series_(series),
        past_(shape.input_size),
        all_(shape.input_size + shape.horizon),
        futr_(static_cast<int64_t>(shape.columns.futr_exog.size())),
        hist_(static_cast<int64_t>(shape.columns.hist_exog.size())) {
    const auto options = at::TensorOptions(at::kFloat);
    const int64_t windows = together_ ? 1 : series, width = together_ ? series : 1;
    inputs.insample_y = at::zeros({windows, past_, width}, options);
    if (futr_ > 0 && together_) inputs.futr_exog = at::zeros({1, futr_, all_, series}, options);
    if (futr_ > 0 && !together_) inputs.futr_exog = at::zeros({series, all_, futr_}, options);
    if (hist_ > 0) inputs.hist_exog = at::zeros({series, past_, hist_}, options);
  }

  Target y(int64_t s) const { return of_series(inputs.insample_y, s); }
  Target mask(int64_t s) {
    if (!inputs.insample_mask.defined()) inputs.insample_mask = at::ones_like(inputs.insample_y);
    return of_series(inputs.insample_mask, s);
  }
  Target futr(int64_t s, int64_t column) const {
    float* data = inputs.futr_exog.mutable_data_ptr<float>();
    if (together_) return {data + column * all_ * series_ + s, series_};
    return {data + s * all_ * futr_ + column, futr_};
  }
  Target hist(int64_t s, int64_t column) const {
    return {inputs.hist_exog.mutable_data_ptr<float>() + s * past_ * hist_ + column, hist_};
  }

  WindowsBatch inputs;

 private:
  Target of_series(const at::Tensor& tensor, int64_t s) const {
    float* data = tensor.mutable_data_ptr<float>();
    return together_ ? Target{data + s, series_} : Target{data + s * past_, 1};
  }

  bool together_;
  int64_t series_, past_, all_, futr_, hist_;
};

void add_series(Batch& batch, int64_t s, const SeriesTensors& columns, const ColumnScaling& scaling,
                const WindowShape& shape) {
  const int64_t rows = columns.y.size(0);
  const int64_t count = std::min(rows, shape.input_size);
  const int64_t first = rows - count, padding = shape.input_size - count;
  size_t position = 0;  // of a column among those that are scaled
  const auto fill_next = [&](const Target& target, const at::Tensor& values, int64_t column,
                             int64_t length) {
    const double shift = scaling.empty() ? 0.0 : scaling.shift[position];
    const double spread = scaling.empty() ? 1.0 : scaling.spread[position];
    fill_column(target, padding, values, column, first, length, shift, spread);
    ++position;
  };
  fill_next(batch.y(s), columns.y, 0, count);
  for (size_t i = 0; i < shape.columns.futr_exog.size(); ++i) {
    const auto column = static_cast<int64_t>(i);
    fill_next(batch.futr(s, column), columns.futr, column, count + shape.horizon);
  }
  for (size_t i = 0; i < shape.columns.hist_exog.size(); ++i) {
    const auto column = static_cast<int64_t>(i);
    fill_next(batch.hist(s, column), columns.hist, column, count);
  }
  if (padding == 0) return;
  const Target mask = batch.mask(s);
  for (int64_t t = 0; t < padding; ++t) mask.data[t * mask.stride] = 0.0F;
}

/// rows of [S] -> scaled float32 [series, S].
at::Tensor static_columns(const std::vector<at::Tensor>& rows, const SeriesScaling& scaling) {
  at::Tensor values = at::stack(rows);
  const ColumnScaling by = scaling.local_static_type.empty()
                               ? scaling.stat
                               : fit_local_scaler(scaling.local_static_type, values);
  if (!by.empty()) {
    values = (values - at::tensor(by.shift, at::kDouble)) / at::tensor(by.spread, at::kDouble);
  }
  return values.to(at::kFloat);
}

void check_range(const WindowsBatch& inputs) {
  for (const at::Tensor& tensor :
       {inputs.insample_y, inputs.futr_exog, inputs.hist_exog, inputs.stat_exog}) {
    if (!tensor.defined()) continue;
    const float* numbers = tensor.const_data_ptr<float>();
    const bool good =
        std::all_of(numbers, numbers + tensor.numel(), [](float x) { return std::isfinite(x); });
    TORCH_CHECK_VALUE(good,
                      "Forecaster: expected series which once scaled are within the range of "
                      "float32, got larger values; divide them by a power of ten");
  }
}

}  // namespace

std::string describe_series(const std::vector<RawSeries>& series, size_t index) {
  const std::string& name = series[index].name;
  return c10::str("series ", index, name.empty() ? "" : " (" + excerpt(name) + ")");
}

ForecastWindows make_windows(const std::vector<RawSeries>& series, const WindowShape& shape,
                             const SeriesScaling& scaling) {
  Batch batch(static_cast<int64_t>(series.size()), shape);
  ForecastWindows windows;
  std::vector<at::Tensor> stat;
  for (size_t i = 0; i < series.size(); ++i) {
    const SeriesTensors columns = SeriesReader(series, i, shape).read();
    ColumnScaling by = scaling_of(series, i, columns, scaling);
    add_series(batch, static_cast<int64_t>(i), columns, by, shape);
    if (columns.stat.defined()) stat.push_back(columns.stat.squeeze(1));
    if (!by.empty()) windows.scaling.push_back(std::move(by));
  }
  windows.inputs = std::move(batch.inputs);
  if (!stat.empty()) windows.inputs.stat_exog = static_columns(stat, scaling);
  check_range(windows.inputs);
  return windows;
}

}  // namespace flash::models
