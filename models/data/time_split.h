#pragma once
// The split of a series into training, validation and test rows.

#include <cstdint>

namespace flash::models {

/// Rows [begin, end) of a series.
struct RowRange {
  int64_t begin;
  int64_t end;
};

/// In order of time.
struct TimeSplit {
  RowRange train;
  RowRange validation;
  RowRange test;
};

/// How to split: by fractions of the rows or, if `train_rows` is positive, by numbers of rows. The
/// test part is the rest, or `test_rows` if that is positive; rows after it are not used.
struct SplitSettings {
  double train_fraction = 0.7;
  double validation_fraction = 0.1;
  int64_t train_rows = 0;
  int64_t validation_rows = 0;
  int64_t test_rows = 0;
};

/// Splits `rows` rows. Throws c10::ValueError if a part is too short for one window: the training
/// part needs input_size + horizon rows, the others `horizon`, because their windows reach back
/// into the previous part.
TimeSplit split_by_time(int64_t rows, const SplitSettings& settings, int64_t input_size,
                        int64_t horizon);

}  // namespace flash::models
