#pragma once
// Several series of one CSV file, with the columns that help to forecast them.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

namespace flash::models {

/// Which column is what. Without an id column the table is wide: each target is a series, and the
/// exogenous columns belong to all of them. With one it is long: each id is a series of the one
/// target, its rows in order of time.
struct PanelColumns {
  std::vector<std::string> targets;
  std::string time_column;             ///< empty: the first column
  std::string id_column;               ///< empty: a wide table
  std::vector<std::string> futr_exog;  ///< known of past and future
  std::vector<std::string> hist_exog;  ///< known of the past
  std::vector<std::string> stat_exog;  ///< one value per series
};

struct Series {
  std::string name;                 ///< the target's in a wide table, the id in a long one
  std::vector<std::string> labels;  ///< the time of each row as text
  int64_t known;                    ///< rows whose target is known: all but in read_open_panel
  at::Tensor values;                ///< float64 [1 + F + X, rows]: target, futr_exog, hist_exog
  at::Tensor stat;                  ///< float64 [S]
};

/// Throws c10::ValueError as read_csv does, where a long table has several targets, and where a
/// static column is not constant within a series.
std::vector<Series> read_panel(const std::string& path, const PanelColumns& columns);

/// As read_panel, for forecasts beyond the last known value: a series has exactly `horizon` rows
/// more than are known. The file holds them, with empty fields for target and hist_exog, where
/// there is something to know of the future; otherwise it need not, and their times are "+1", "+2",
/// ... What is not known is 0. Throws c10::ValueError also where futr_exog lacks future rows.
std::vector<Series> read_open_panel(const std::string& path, const PanelColumns& columns,
                                    int64_t horizon);

}  // namespace flash::models
