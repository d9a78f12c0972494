#pragma once
// A table of numbers from a CSV file.

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "data/timestamp.h"

namespace flash::models {

/// What the columns without numbers mean.
struct CsvLayout {
  std::string time_column;  ///< see CsvTimes; empty: found by what is in it
  std::string id_column;    ///< which series a row belongs to; empty: there is no such column
  /// Of the columns of numbers those whose fields may be empty, which gives NaN.
  std::vector<std::string> open_columns;
  bool timed = false;  ///< whether the rows have times at all
};

/// The rows of a table as its time column has them, in the order of the file. Without such a column
/// there are lines only.
struct CsvTimes {
  std::string column;
  std::vector<std::string> labels;  ///< as text
  std::vector<Timestamp> times;     ///< all of one kind
  std::vector<int64_t> lines;       ///< of the file, from 1
};

/// Chosen columns of a CSV file.
struct CsvTable {
  std::vector<std::string> columns;
  CsvTimes rows;
  std::vector<std::string> ids;  ///< text of each row's id column; empty without one
  at::Tensor values;             ///< float64 [columns, rows]
};

/// Reads `columns` of a comma-separated file whose first line names them. Fields may be quoted;
/// empty lines are passed over. The times are in the column that the layout names, or else in the
/// first column of dates that has no other use, or else in the first column without another use,
/// if it has integers. Throws c10::ValueError naming file, line and column if the file cannot be
/// read, a column is missing or named twice, a line has another number of fields, a field is no
/// finite number, no time or no time of the kind in the lines before, or an id is empty or not
/// UTF-8.
CsvTable read_csv(const std::string& path, const std::vector<std::string>& columns,
                  const CsvLayout& layout = {});

}  // namespace flash::models
