// CSV tables, their windows and their scaler.

#include "data/csv_dataset.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "data/scaler.h"
#include "models/temporary_file.h"

namespace flash::tests {
namespace {

using models::CsvTable;
using models::read_csv;
using models::Scaler;
using models::split_by_time;
using models::TimeSplit;
using models::WindowDataset;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::ThrowsMessage;

/// What reading columns a and b of this text is refused with.
std::string refusal(const std::string& text, const std::vector<std::string>& columns = {"a", "b"}) {
  const TemporaryFile file(".csv", text);
  try {
    read_csv(file.path(), columns);
  } catch (const c10::ValueError& error) {
    const std::string message = error.what_without_backtrace();
    EXPECT_TRUE(message.starts_with(file.path())) << message;
    return message.substr(file.path().size());
  }
  return "not refused";
}

TEST(Csv, GivesTheChosenColumnsInTheOrderAsked) {
  const TemporaryFile file(".csv", "date,a,b,word\n2020-01-01,1,2.5,x\n2020-01-02,-3,+4e1,y\n");
  const CsvTable table = read_csv(file.path(), {"b", "a"});
  EXPECT_TRUE(torch::equal(table.values,
                           torch::tensor({2.5, 40.0, 1.0, -3.0}, torch::kDouble).view({2, 2})));
  EXPECT_THAT(table.labels, ElementsAre("2020-01-01", "2020-01-02"));
  EXPECT_THAT(table.columns, ElementsAre("b", "a"));
}

TEST(Csv, MayUseQuotesBlanksEmptyLinesAndWindowsEndings) {
  const TemporaryFile file(
      ".csv", "\xEF\xBB\xBF\"a\", b ,\"c, \"\"d\"\"\"\r\n\r\n 1 ,\"2\",\"x,y\"\r\n3,4,\r\n");
  const CsvTable table = read_csv(file.path(), {"a", "b"});
  EXPECT_TRUE(
      torch::equal(table.values, torch::tensor({1.0, 3.0, 2.0, 4.0}, torch::kDouble).view({2, 2})));
  EXPECT_EQ(refusal("\"c, \"\"d\"\"\"\n1\n", {"c, \"d\""}), "not refused");
}

TEST(BrokenCsv, ThatCannotBeRead) {
  EXPECT_THAT([] { read_csv("/nonexistent.csv", {"a"}); },
              ThrowsMessage<c10::ValueError>(
                  AllOf(HasSubstr("/nonexistent.csv"), HasSubstr("No such file or directory"))));
  EXPECT_THAT([] { read_csv("/", {"a"}); },
              ThrowsMessage<c10::ValueError>(HasSubstr("is a directory")));
}

TEST(BrokenCsv, WithoutNamesOrRows) {
  EXPECT_EQ(refusal("\n"), ": expected a first line with column names, got an empty file");
  EXPECT_EQ(refusal("a,b\n"), ": expected rows of numbers below line 1, got none");
}

TEST(BrokenCsv, LackingAColumn) {
  EXPECT_EQ(refusal("date,a\n1,2\n"),
            ", line 1: expected one column b, got none; the file has the columns date, a");
}

TEST(BrokenCsv, NamingAColumnTwice) {
  EXPECT_EQ(refusal("a,b,a\n1,2,3\n"),
            ", line 1: expected one column a, got 2; the file has the columns a, b, a");
}

TEST(Csv, GivesNoColumnTwice) {
  EXPECT_EQ(refusal("a,b\n1,2\n", {"a", "b", "a"}),
            ": expected each column to be asked for once, got a twice in a, b, a");
}

TEST(BrokenCsv, WithTextInANumber) {
  EXPECT_EQ(refusal("a,b\n1,2\n3,4x\n"),
            ", line 3, column b: expected a finite number, got \"4x\"");
}

TEST(BrokenCsv, WithMissingOrInfiniteNumbers) {
  EXPECT_EQ(refusal("a,b\n1,2\n,4\n"),
            ", line 3, column a: expected a finite number, got \"\"; fill missing values or drop "
            "the row first");
  for (const std::string value : {"nan", "NaN", "inf", "-Inf", "1e999"}) {
    EXPECT_EQ(refusal("a,b\n" + value + ",2\n"),
              ", line 2, column a: expected a finite number, got \"" + value + "\"");
  }
}

TEST(BrokenCsv, WithRaggedRows) {
  EXPECT_EQ(refusal("a,b\n1,2\n\n1\n"), ", line 4: expected 2 fields as in line 1, got 1");
  EXPECT_EQ(refusal("a,b\n1,2,3\n"), ", line 2: expected 2 fields as in line 1, got 3");
}

TEST(BrokenCsv, WithAnOpenQuote) {
  EXPECT_EQ(refusal("a,b\n1,\"2\n"),
            ", line 2: expected a closing quote before the end of the line");
}

TEST(Split, KeepsTheOrderOfTime) {
  const TimeSplit split = split_by_time(100, 0.7, 0.1, 20, 5);
  EXPECT_EQ(split.train.begin, 0);
  EXPECT_EQ(split.train.end, 70);
  EXPECT_EQ(split.validation.begin, 70);
  EXPECT_EQ(split.validation.end, 80);
  EXPECT_EQ(split.test.begin, 80);
  EXPECT_EQ(split.test.end, 100);
}

TEST(Split, RefusesTooFewRows) {
  EXPECT_THAT([] { split_by_time(100, 0.7, 0.1, 66, 5); },
              ThrowsMessage<c10::ValueError>(
                  HasSubstr("expected at least 71 rows in the training part, got 70 of 100; use a "
                            "longer table, or a shorter input size or horizon")));
  EXPECT_THAT([] { split_by_time(100, 0.7, 0.1, 20, 11); },
              ThrowsMessage<c10::ValueError>(
                  HasSubstr("expected at least 11 rows in the validation part, got 10 of 100")));
  EXPECT_THAT([] { split_by_time(100, 0.7, 0.28, 20, 5); },
              ThrowsMessage<c10::ValueError>(HasSubstr("rows in the test part")));
  EXPECT_THAT([] { split_by_time(100, 0.7, 0.3, 20, 5); },
              ThrowsMessage<c10::ValueError>(HasSubstr("fractions that leave a test part")));
}

TEST(Windows, AreEveryStretchOfEveryColumn) {
  // Value = 100 * column + row, so that each number says where it comes from.
  const torch::Tensor values =
      torch::arange(10.0).unsqueeze(0) + 100.0 * torch::arange(2.0).unsqueeze(1);
  const WindowDataset train(values, {0, 6}, /*past_inside=*/true, 3, 2);
  EXPECT_EQ(train.size(), 2 * 2);
  const auto batch = train.batch(torch::tensor({0, 1, 3}));
  EXPECT_TRUE(torch::equal(
      batch.past.squeeze(2),
      torch::tensor({{0.0f, 1.0f, 2.0f}, {100.0f, 101.0f, 102.0f}, {101.0f, 102.0f, 103.0f}})));
  EXPECT_TRUE(torch::equal(batch.future,
                           torch::tensor({{3.0f, 4.0f}, {103.0f, 104.0f}, {104.0f, 105.0f}})));
  EXPECT_EQ(train.first_future_row(3), 4);
}

TEST(Windows, OfLaterPartsReachBackButTheirFutureDoesNot) {
  const torch::Tensor values = torch::arange(10.0).unsqueeze(0);
  const WindowDataset test(values, {6, 10}, /*past_inside=*/false, 3, 2);
  EXPECT_EQ(test.size(), 3);
  const auto batch = test.batch(torch::arange(3));
  EXPECT_TRUE(torch::equal(batch.past[0].squeeze(1), torch::tensor({3.0f, 4.0f, 5.0f})));
  EXPECT_TRUE(torch::equal(batch.future[2], torch::tensor({8.0f, 9.0f})));
  EXPECT_EQ(test.first_future_row(0), 6);
}

TEST(ScalerOfAColumn, StandardisesAndReturns) {
  torch::manual_seed(1);
  const torch::Tensor values = torch::randn({3, 50}, torch::kDouble) * 4.0 + 7.0;
  const Scaler scaler = Scaler::fit(values);
  const torch::Tensor scaled = scaler.transform(values);
  EXPECT_LT(scaled.mean(1).abs().max().item<double>(), 1e-12);  // rounding of 50 sums
  EXPECT_LT((scaled.square().mean(1) - 1.0).abs().max().item<double>(), 1e-12);
  EXPECT_TRUE(torch::allclose(scaler.inverse(scaled), values, 1e-14));
}

TEST(ScalerOfAColumn, LeavesAConstantColumnFinite) {
  const torch::Tensor values = torch::full({1, 7}, 0.1, torch::kDouble);
  const Scaler scaler = Scaler::fit(values);
  EXPECT_EQ(scaler.deviation.item<double>(), 1.0);
  EXPECT_LT(scaler.transform(values + 1.0).sub(1.0).abs().max().item<double>(), 1e-12);
}

}  // namespace
}  // namespace flash::tests
