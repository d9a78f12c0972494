#pragma once
// Numeric columns of a CSV file.

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "data/timestamp.h"

namespace flash::models {

/// The columns that are not numeric.
struct CsvLayout {
  std::string time_column;  ///< see CsvTimes; if empty, detected by its contents
  std::string id_column;    ///< which series a row belongs to; empty if there is no such column
  /// Numeric columns whose fields may be empty, which gives NaN.
  std::vector<std::string> open_columns;
  bool timed = false;  ///< whether the rows have times at all
};

/// The times of a table's rows, in the order of the file. Without a time column there are only line
/// numbers.
struct CsvTimes {
  std::string column;
  std::vector<std::string> labels;  ///< as text
  std::vector<Timestamp> times;     ///< all of the same kind
  std::vector<int64_t> lines;       ///< of the file, from 1
};

/// Selected columns of a CSV file.
struct CsvTable {
  std::vector<std::string> columns;
  CsvTimes rows;
  std::vector<std::string> ids;  ///< id of each row; empty without an id column
  at::Tensor values;             ///< float64 [columns, rows]
};

/// Reads `columns` of a comma-separated file whose first line names them. Fields may be quoted;
/// empty lines are skipped. The time column is the one that the layout names; otherwise the first
/// unused column of dates; otherwise the first unused column, if it contains integers. Throws
/// c10::ValueError naming file, line and column if the file cannot be read, a column is missing or
/// named twice, the number of fields varies, a field is not a finite number, a time is malformed or
/// of another kind than those before, or an id is empty or not UTF-8.
CsvTable read_csv(const std::string& path, const std::vector<std::string>& columns,
                  const CsvLayout& layout = {});

}  // namespace flash::models
