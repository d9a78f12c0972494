// Training, validation and test parts of a table.

#include "data/time_split.h"

#include <c10/util/Exception.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

namespace flash::tests {
namespace {

using models::split_by_time;
using models::TimeSplit;
using testing::HasSubstr;
using testing::ThrowsMessage;

TEST(Split, IsInOrderOfTime) {
  const TimeSplit split = split_by_time(100, {}, 20, 5);
  EXPECT_EQ(split.train.begin, 0);
  EXPECT_EQ(split.train.end, 70);
  EXPECT_EQ(split.validation.begin, 70);
  EXPECT_EQ(split.validation.end, 80);
  EXPECT_EQ(split.test.begin, 80);
  EXPECT_EQ(split.test.end, 100);
}

TEST(Split, RejectsTooFewRows) {
  EXPECT_THAT([] { split_by_time(100, {}, 66, 5); },
              ThrowsMessage<c10::ValueError>(
                  HasSubstr("expected at least 71 rows in the training part, got 70 of 100; use a "
                            "longer table, or a shorter input size or horizon")));
  EXPECT_THAT([] { split_by_time(100, {}, 20, 11); },
              ThrowsMessage<c10::ValueError>(
                  HasSubstr("expected at least 11 rows in the validation part, got 10 of 100")));
  EXPECT_THAT([] { split_by_time(100, {.validation_fraction = 0.28}, 20, 5); },
              ThrowsMessage<c10::ValueError>(HasSubstr("rows in the test part")));
  EXPECT_THAT([] { split_by_time(100, {.validation_fraction = 0.3}, 20, 5); },
              ThrowsMessage<c10::ValueError>(HasSubstr("fractions that leave a test part")));
}

TEST(Split, ByRowsIgnoresTheRest) {
  // The usual split of ETTh1: 17,420 hours, of which 20 months are used.
  const TimeSplit split = split_by_time(
      17420, {.train_rows = 8640, .validation_rows = 2880, .test_rows = 2880}, 96, 96);
  EXPECT_EQ(split.validation.begin, 8640);
  EXPECT_EQ(split.test.begin, 11520);
  EXPECT_EQ(split.test.end, 14400);
  EXPECT_EQ(split_by_time(100, {.train_rows = 50, .validation_rows = 20}, 20, 5).test.end, 100);
  EXPECT_THAT([] { split_by_time(100, {.train_rows = 50, .validation_rows = 50}, 20, 5); },
              ThrowsMessage<c10::ValueError>(HasSubstr("and a test part, got 100 rows")));
}

TEST(Split, ByRowsRejectsMoreRowsThanTheTableHas) {
  const auto test_part = [](int64_t rows) {
    return split_by_time(100, {.train_rows = 50, .validation_rows = 20, .test_rows = rows}, 20, 5)
        .test;
  };
  EXPECT_EQ(test_part(30).end, 100);
  EXPECT_THAT([&] { test_part(31); },
              ThrowsMessage<c10::ValueError>(HasSubstr("got 100 rows for parts of 50, 20 and 31")));
}

TEST(Split, RejectsSizesWhoseSumOverflows) {
  constexpr int64_t kMost = std::numeric_limits<int64_t>::max();
  for (const models::SplitSettings& settings :
       {models::SplitSettings{.train_rows = kMost, .validation_rows = 1},
        models::SplitSettings{.train_rows = 1, .validation_rows = kMost},
        models::SplitSettings{.train_rows = kMost, .validation_rows = kMost, .test_rows = kMost},
        models::SplitSettings{.train_rows = 50, .validation_rows = 20, .test_rows = kMost}}) {
    EXPECT_THAT([&] { split_by_time(100, settings, 20, 5); },
                ThrowsMessage<c10::ValueError>(HasSubstr("got 100 rows for parts of")));
  }
  EXPECT_THAT(
      [] { split_by_time(100, {}, kMost, 5); },
      ThrowsMessage<c10::ValueError>(HasSubstr("rows in the training part, got 70 of 100")));
  EXPECT_THAT(
      [] { split_by_time(100, {}, 20, kMost); },
      ThrowsMessage<c10::ValueError>(HasSubstr("rows in the training part, got 70 of 100")));
}

}  // namespace
}  // namespace flash::tests
