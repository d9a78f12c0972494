#pragma once
// A table of numbers from a CSV file.

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

namespace flash::models {

/// What the columns without numbers mean.
struct CsvLayout {
  std::string time_column;  ///< labels of the rows; empty: the first column
  std::string id_column;    ///< which series a row belongs to; empty: there is no such column
  /// Of the columns of numbers those whose fields may be empty, which gives NaN.
  std::vector<std::string> open_columns;
};

/// Chosen columns of a CSV file.
struct CsvTable {
  std::vector<std::string> columns;
  std::vector<std::string> labels;  ///< text of each row's time column: usually the date
  std::vector<std::string> ids;     ///< text of each row's id column; empty without one
  at::Tensor values;                ///< float64 [columns, rows]
};

/// Reads `columns` of a comma-separated file whose first line names them. Fields may be quoted;
/// empty lines are passed over. Throws c10::ValueError naming file, line and column if the file
/// cannot be read, a column is missing or named twice, a line has another number of fields, or a
/// field is no finite number.
CsvTable read_csv(const std::string& path, const std::vector<std::string>& columns,
                  const CsvLayout& layout = {});

}  // namespace flash::models
