#pragma once
// Several series of one CSV file, with the columns that help to forecast them.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "data/time_axis.h"

namespace flash::models {

/// Which column is what. Without an id column the table is wide: each target is a series, and the
/// exogenous columns belong to all of them. With one it is long: each id is a series of the one
/// target.
struct PanelColumns {
  std::vector<std::string> targets;
  std::string time_column;             ///< empty: as read_csv finds it
  std::string id_column;               ///< empty: a wide table
  std::vector<std::string> futr_exog;  ///< known of past and future
  std::vector<std::string> hist_exog;  ///< known of the past
  std::vector<std::string> stat_exog;  ///< one value per series
  bool untimed = false;                ///< no column has times: the rows are in order as they stand
  bool sort = false;                   ///< put the rows of each series in order of time
};

struct Series {
  std::string name;                      ///< the target's in a wide table, the id in a long one
  std::shared_ptr<const TimeAxis> axis;  ///< of the rows in the file; one for a whole wide table
  int64_t known;                         ///< rows whose target is known: all but in read_open_panel
  at::Tensor values;                     ///< float64 [1 + F + X, rows]: target, futr_, hist_exog
  at::Tensor stat;                       ///< float64 [S]

  /// The time of a row as text: as in the file, or the row's number from 1 where the table has no
  /// times; "+1", "+2", ... for rows that are not in the file.
  std::string label(int64_t row) const;
};

/// The line about time for people, see describe_times.
std::string describe_times(const std::vector<Series>& panel);

/// Throws c10::ValueError as read_csv does, where the rows of a series are not in order of time and
/// none asked to sort them, where a time is there twice, where a long table has several targets,
/// and where a static column is not constant within a series.
std::vector<Series> read_panel(const std::string& path, const PanelColumns& columns);

/// As read_panel, for forecasts beyond the last known value: a series has exactly `horizon` rows
/// more than are known. The file holds them, with empty fields for target and hist_exog, where
/// there is something to know of the future; otherwise it need not. What is not known is 0. Throws
/// c10::ValueError also where futr_exog lacks future rows.
std::vector<Series> read_open_panel(const std::string& path, const PanelColumns& columns,
                                    int64_t horizon);

}  // namespace flash::models
