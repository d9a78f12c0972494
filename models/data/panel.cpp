#include "data/panel.h"

#include <ATen/ATen.h>

#include <map>
#include <numeric>
#include <utility>

#include "data/csv_reader.h"
#include "data/csv_table.h"

namespace flash::models {
namespace {

int64_t count(const std::vector<std::string>& names) { return static_cast<int64_t>(names.size()); }

/// Ordered by the series' first rows.
std::vector<SeriesRows> group_by_id(const std::vector<std::string>& ids) {
  std::vector<SeriesRows> groups;
  std::map<std::string, size_t> indices;
  for (size_t row = 0; row < ids.size(); ++row) {
    const auto [entry, is_new] = indices.emplace(ids[row], indices.size());
    if (is_new) groups.push_back({.name = ids[row], .rows = {}});
    groups[entry->second].rows.push_back(static_cast<int64_t>(row));
  }
  return groups;
}

SeriesRows all_rows(const CsvTable& table) {
  SeriesRows all{.name = "", .rows = std::vector<int64_t>(table.rows.lines.size())};
  std::iota(all.rows.begin(), all.rows.end(), 0);
  return all;
}

/// The one value of each static column, float64 [S].
at::Tensor constant_of(const at::Tensor& values, const std::string& series,
                       const std::vector<std::string>& names) {
  for (int64_t i = 0; i < count(names); ++i) {
    TORCH_CHECK_VALUE(values[i].eq(values[i][0]).all().item<bool>(), "expected one value of ",
                      printable(names[static_cast<size_t>(i)]),
                      ", a static column, in all rows of ", series, ", got ",
                      values[i].min().item<double>(), " to ", values[i].max().item<double>());
  }
  return values.select(1, 0).clone();
}

CsvTable read_columns(const std::string& path, const PanelColumns& columns, bool open) {
  std::vector<std::string> numeric = columns.targets;
  for (const auto* more : {&columns.futr_exog, &columns.hist_exog, &columns.stat_exog}) {
    numeric.insert(numeric.end(), more->begin(), more->end());
  }
  CsvLayout layout{.time_column = columns.time_column,
                   .id_column = columns.id_column,
                   .open_columns = {},
                   .timed = !columns.untimed};
  if (open) {
    layout.open_columns = columns.targets;
    layout.open_columns.insert(layout.open_columns.end(), columns.hist_exog.begin(),
                               columns.hist_exog.end());
  }
  return read_csv(path, numeric, layout);
}

/// The series in these rows of the table.
void add_series(std::vector<Series>& panel, const std::string& path, const PanelColumns& columns,
                const CsvTable& table, SeriesRows rows) {
  const std::vector<int64_t> as_they_stand = rows.rows;
  const auto axis = make_time_axis(path, table.rows, rows, columns.sort);
  const bool whole = columns.id_column.empty() && rows.rows == as_they_stand;
  const at::Tensor values =
      whole ? table.values : table.values.index_select(1, at::tensor(rows.rows));
  const int64_t targets = count(columns.targets);
  const int64_t exogenous = count(columns.futr_exog) + count(columns.hist_exog);
  for (int64_t i = 0; i < targets; ++i) {
    const std::string& name =
        columns.id_column.empty() ? columns.targets[static_cast<size_t>(i)] : rows.name;
    panel.push_back(
        {.name = name,
         .axis = axis,
         .known = values.size(1),
         .values =
             at::cat({values.slice(0, i, i + 1), values.slice(0, targets, targets + exogenous)}),
         .stat = constant_of(values.slice(0, targets + exogenous), name, columns.stat_exog)});
  }
}

std::vector<Series> make_series(const std::string& path, const PanelColumns& columns, bool open) {
  TORCH_CHECK_VALUE(columns.id_column.empty() || columns.targets.size() == 1, path,
                    ": expected one target in a table with the id column ",
                    printable(columns.id_column), ", got ", join(columns.targets));
  const CsvTable table = read_columns(path, columns, open);
  std::vector<Series> panel;
  for (SeriesRows& rows :
       columns.id_column.empty() ? std::vector{all_rows(table)} : group_by_id(table.ids)) {
    add_series(panel, path, columns, table, std::move(rows));
  }
  return panel;
}

/// Truncates or extends a series to `horizon` rows beyond the last known target.
void open_end(Series& series, const std::string& path, const PanelColumns& columns,
              int64_t horizon) {
  const int64_t rows = series.values.size(1);
  const at::Tensor finite = series.values[0].isfinite().nonzero();
  TORCH_CHECK_VALUE(finite.size(0) > 0, path, ": expected numbers in the target of ", series.name,
                    ", got only empty fields");
  series.known = finite[-1].item<int64_t>() + 1;
  TORCH_CHECK_VALUE(
      series.values.slice(1, 0, series.known).isfinite().all().item<bool>(), path,
      ": expected empty fields of ", series.name,
      " only after its last known value; fill missing values or drop those rows first");
  const int64_t given = std::min(rows - series.known, horizon);
  TORCH_CHECK_VALUE(columns.futr_exog.empty() || given == horizon, path, ": expected ", horizon,
                    " rows after the last known value of ", series.name, ", with ",
                    join(columns.futr_exog), " and an empty target, got ", given);
  at::Tensor values = at::zeros({series.values.size(0), series.known + horizon}, at::kDouble);
  values.slice(1, 0, series.known + given)
      .copy_(series.values.slice(1, 0, series.known + given).nan_to_num(0.0));
  series.values = values;
}

}  // namespace

std::string Series::label(int64_t row) const {
  if (row >= axis->rows()) return std::string("+") + std::to_string(row - known + 1);
  return axis->labels.empty() ? std::to_string(row + 1) : axis->labels[static_cast<size_t>(row)];
}

std::string describe_times(const std::vector<Series>& panel) {
  std::vector<std::shared_ptr<const TimeAxis>> axes;
  for (const Series& series : panel) {
    if (axes.empty() || axes.back() != series.axis) axes.push_back(series.axis);
  }
  return describe_times(axes);
}

std::vector<Series> read_panel(const std::string& path, const PanelColumns& columns) {
  return make_series(path, columns, /*open=*/false);
}

std::vector<Series> read_open_panel(const std::string& path, const PanelColumns& columns,
                                    int64_t horizon) {
  std::vector<Series> panel = make_series(path, columns, /*open=*/true);
  for (Series& series : panel) open_end(series, path, columns, horizon);
  return panel;
}

}  // namespace flash::models
