#pragma once
// A table of numbers from a CSV file, and windows of its columns to train and test a forecaster on.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

namespace flash::models {

/// Chosen columns of a CSV file.
struct CsvTable {
  std::vector<std::string> columns;
  std::vector<std::string> labels;  ///< first field of each row as text: usually the date
  at::Tensor values;                ///< float64 [columns, rows]
};

/// Reads `columns` of a comma-separated file whose first line names them. Fields may be quoted;
/// empty lines are passed over. Throws c10::ValueError naming file, line and column if the file
/// cannot be read, a column is missing or named twice, a line has another number of fields, or a
/// field is no finite number.
CsvTable read_csv(const std::string& path, const std::vector<std::string>& columns);

/// Rows [begin, end) of a table.
struct RowRange {
  int64_t begin;
  int64_t end;
};

/// Training, validation and test rows, in order of time.
struct TimeSplit {
  RowRange train;
  RowRange validation;
  RowRange test;
};

/// Cuts `rows` rows by the fractions given; the rest is the test part. Throws c10::ValueError if a
/// part is too short for one window: the training part needs input_size + horizon rows, the others
/// `horizon`, since their windows reach back into the part before.
TimeSplit split_by_time(int64_t rows, double train_fraction, double validation_fraction,
                        int64_t input_size, int64_t horizon);

/// One batch: windows of single columns.
struct WindowBatch {
  at::Tensor past;    ///< [B, input_size, 1]
  at::Tensor future;  ///< [B, horizon]
};

/// Every window of every column whose future lies in the rows given. Windows are views of the table
/// until a batch is taken, so long inputs cost no memory. Window i is column i % columns at start
/// i / columns, so neighbours in time are neighbours in number.
class WindowDataset {
 public:
  /// values [columns, rows]. Past rows may lie before `future_rows` unless `past_inside`.
  WindowDataset(const at::Tensor& values, RowRange future_rows, bool past_inside,
                int64_t input_size, int64_t horizon);

  int64_t size() const { return windows_.size(0) * windows_.size(1); }
  int64_t columns() const { return windows_.size(0); }
  /// Row of the table at which the future of window `index` begins.
  int64_t first_future_row(int64_t index) const;

  /// The windows numbered by `indices`, int64 [B].
  WindowBatch batch(const at::Tensor& indices) const;

 private:
  at::Tensor windows_;  // [columns, starts, input_size + horizon], a view
  int64_t first_start_;
  int64_t input_size_;
};

}  // namespace flash::models
