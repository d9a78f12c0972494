#include "data/time_split.h"

#include <c10/util/Exception.h>

#include <limits>
#include <string>

namespace flash::models {
namespace {

void check_part(const char* name, int64_t rows, int64_t needed, int64_t total) {
  TORCH_CHECK_VALUE(rows >= needed, "expected at least ", needed, " rows in the ", name,
                    " part, got ", rows, " of ", total,
                    "; use a longer table, or a shorter input size or horizon");
}

/// Sizes of the three parts.
struct Sizes {
  int64_t train;
  int64_t validation;
  int64_t test;
};

Sizes by_rows(int64_t rows, const SplitSettings& settings) {
  TORCH_CHECK_VALUE(settings.train_rows > 0 && settings.validation_rows > 0,
                    "expected rows for the training and the validation part, got ",
                    settings.train_rows, " and ", settings.validation_rows);
  // One at a time, because their sum could overflow.
  const int64_t after_train = rows - settings.train_rows;
  const int64_t left = after_train > 0 ? after_train - settings.validation_rows : 0;
  const int64_t test = settings.test_rows > 0 ? settings.test_rows : left;
  TORCH_CHECK_VALUE(
      left > 0 && test <= left,
      "expected a table that has all rows of its parts, and a test part, got ", rows,
      " rows for parts of ", settings.train_rows, ", ", settings.validation_rows, " and ",
      settings.test_rows > 0 ? std::to_string(settings.test_rows) : std::string("the rest"));
  return {settings.train_rows, settings.validation_rows, test};
}

Sizes by_fractions(int64_t rows, const SplitSettings& settings) {
  const double train = settings.train_fraction, validation = settings.validation_fraction;
  TORCH_CHECK_VALUE(
      train > 0.0 && validation > 0.0 && train + validation < 1.0,
      "expected positive training and validation fractions that leave a test part, got ", train,
      " and ", validation);
  const auto total = static_cast<double>(rows);
  Sizes sizes{static_cast<int64_t>(total * train), static_cast<int64_t>(total * validation), 0};
  sizes.test = rows - sizes.train - sizes.validation;
  return sizes;
}

}  // namespace

TimeSplit split_by_time(int64_t rows, const SplitSettings& settings, int64_t input_size,
                        int64_t horizon) {
  const bool numbers =
      settings.train_rows != 0 || settings.validation_rows != 0 || settings.test_rows != 0;
  const Sizes sizes = numbers ? by_rows(rows, settings) : by_fractions(rows, settings);
  int64_t window = 0;
  if (__builtin_add_overflow(input_size, horizon, &window)) {
    window = std::numeric_limits<int64_t>::max();
  }
  check_part("training", sizes.train, window, rows);
  check_part("validation", sizes.validation, horizon, rows);
  check_part("test", sizes.test, horizon, rows);
  const int64_t validation_end = sizes.train + sizes.validation;
  return {.train = {0, sizes.train},
          .validation = {sizes.train, validation_end},
          .test = {validation_end, validation_end + sizes.test}};
}

}  // namespace flash::models
