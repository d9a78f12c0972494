#pragma once
// The series of a CSV file, with their exogenous columns.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "data/time_axis.h"

namespace flash::models {

/// The roles of the columns. Without an id column the table is wide: each target column is a
/// series, and the exogenous columns belong to all of them. With an id column it is long: each id
/// is a series of the single target column.
struct PanelColumns {
  std::vector<std::string> targets;
  std::string time_column;             ///< if empty, read_csv detects it
  std::string id_column;               ///< empty for a wide table
  std::vector<std::string> futr_exog;  ///< known for past and future
  std::vector<std::string> hist_exog;  ///< known for the past
  std::vector<std::string> stat_exog;  ///< one value per series
  bool untimed = false;                ///< there is no time column; rows are in order of time
  bool sort = false;                   ///< sort the rows of each series by time
};

struct Series {
  std::string name;                      ///< target column of a wide table, id of a long one
  std::shared_ptr<const TimeAxis> axis;  ///< of the rows in the file; shared in a wide table
  int64_t known;      ///< rows with a known target; fewer only in read_open_panel
  at::Tensor values;  ///< float64 [1 + F + X, rows]: target, futr_, hist_exog
  at::Tensor stat;    ///< float64 [S]

  /// The time of a row as text: as in the file, or the row's number from 1 if the table has no
  /// times;
  /// "+1", "+2", ... for rows beyond the end of the file.
  std::string label(int64_t row) const;
};

/// See describe_times.
std::string describe_times(const std::vector<Series>& panel);

/// Throws c10::ValueError as read_csv does, and if the rows of a series are out of order without
/// `sort`, a time occurs twice, a long table has several targets, or a static column varies within
/// a series.
std::vector<Series> read_panel(const std::string& path, const PanelColumns& columns);

/// Like read_panel, for forecasts beyond the last known value: each series has exactly `horizon`
/// rows after its known ones. With futr_exog columns the file must contain these rows, with empty
/// fields for target and hist_exog; otherwise they may be missing. Unknown values are 0. Throws
/// c10::ValueError also if futr_exog lacks future rows.
std::vector<Series> read_open_panel(const std::string& path, const PanelColumns& columns,
                                    int64_t horizon);

}  // namespace flash::models
