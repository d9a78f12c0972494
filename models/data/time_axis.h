#pragma once
// Rows in order of time, and the steps between them.

#include <memory>
#include <string>
#include <vector>

#include "data/csv_table.h"

namespace flash::models {

/// The rows of one series, or of all series of a wide table, in order of time.
struct TimeAxis {
  std::string column;               ///< name of the time column
  std::vector<std::string> labels;  ///< times as text; empty without a time column
  std::vector<Timestamp> times;
  std::vector<int64_t> lines;  ///< of the file

  int64_t rows() const { return static_cast<int64_t>(lines.size()); }
};

/// The rows of a series in a table. `name` is "" for all series of a wide table.
struct SeriesRows {
  std::string name;
  std::vector<int64_t> rows;
};

/// The axis of these rows, sorted by time if `sort`. Throws c10::ValueError naming the line if a
/// time is not later than the previous one.
std::shared_ptr<const TimeAxis> make_time_axis(const std::string& path, const CsvTimes& table,
                                               SeriesRows& series, bool sort);

/// One line for users: column, first and last time, step between rows, and gaps.
std::string describe_times(const std::vector<std::shared_ptr<const TimeAxis>>& axes);

}  // namespace flash::models
