// CSV tables, series, windows and scalers.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "data/csv_table.h"
#include "data/panel.h"
#include "data/scaler.h"
#include "data/window_dataset.h"
#include "models/temporary_file.h"

namespace flash::tests {
namespace {

using models::ColumnScaler;
using models::CsvTable;
using models::PanelColumns;
using models::read_csv;
using models::read_open_panel;
using models::read_panel;
using models::RowRange;
using models::Series;
using models::SeriesStore;
using models::WindowDataset;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::ThrowsMessage;

const models::CsvLayout kTimed{
    .time_column = "", .id_column = "", .open_columns = {}, .timed = true};

std::vector<std::string> labels_of(const Series& series) {
  std::vector<std::string> labels;
  for (int64_t row = 0; row < series.values.size(1); ++row) labels.push_back(series.label(row));
  return labels;
}

/// The error message for reading columns a and b of this text.
std::string csv_refusal(const std::string& text,
                        const std::vector<std::string>& columns = {"a", "b"}) {
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

TEST(Csv, ReturnsTheRequestedColumnsInOrder) {
  const TemporaryFile file(".csv", "date,a,b,word\n2020-01-01,1,2.5,x\n2020-01-02,-3,+4e1,y\n");
  const CsvTable table = read_csv(file.path(), {"b", "a"}, kTimed);
  EXPECT_TRUE(torch::equal(table.values,
                           torch::tensor({2.5, 40.0, 1.0, -3.0}, torch::kDouble).view({2, 2})));
  EXPECT_THAT(table.rows.labels, ElementsAre("2020-01-01", "2020-01-02"));
  EXPECT_THAT(table.columns, ElementsAre("b", "a"));
}

TEST(Csv, MayContainQuotesBlanksEmptyLinesAndWindowsLineEndings) {
  const TemporaryFile file(
      ".csv", "\xEF\xBB\xBF\"a\", b ,\"c, \"\"d\"\"\"\r\n\r\n 1 ,\"2\",\"x,y\"\r\n3,4,\r\n");
  const CsvTable table = read_csv(file.path(), {"a", "b"});
  EXPECT_TRUE(
      torch::equal(table.values, torch::tensor({1.0, 3.0, 2.0, 4.0}, torch::kDouble).view({2, 2})));
  EXPECT_EQ(csv_refusal("\"c, \"\"d\"\"\"\n1\n", {"c, \"d\""}), "not refused");
}

TEST(BrokenCsv, ThatCannotBeRead) {
  EXPECT_THAT([] { read_csv("/nonexistent.csv", {"a"}); },
              ThrowsMessage<c10::ValueError>(
                  AllOf(HasSubstr("/nonexistent.csv"), HasSubstr("No such file or directory"))));
  EXPECT_THAT([] { read_csv("/", {"a"}); },
              ThrowsMessage<c10::ValueError>(HasSubstr("is a directory")));
}

TEST(BrokenCsv, WithoutNamesOrRows) {
  EXPECT_EQ(csv_refusal("\n"), ": expected a first line with column names, got an empty file");
  EXPECT_EQ(csv_refusal("a,b\n"), ": expected rows of numbers below line 1, got none");
}

TEST(BrokenCsv, LackingAColumn) {
  EXPECT_EQ(csv_refusal("date,a\n1,2\n"),
            ", line 1: expected one column b, got none; the file has the columns date, a");
}

TEST(BrokenCsv, NamingAColumnTwice) {
  EXPECT_EQ(csv_refusal("a,b,a\n1,2,3\n"),
            ", line 1: expected one column a, got 2; the file has the columns a, b, a");
}

TEST(Csv, RejectsARepeatedRequest) {
  EXPECT_EQ(csv_refusal("a,b\n1,2\n", {"a", "b", "a"}),
            ": expected each column to be requested once, got a twice in a, b, a");
}

TEST(BrokenCsv, WithTextInsteadOfANumber) {
  EXPECT_EQ(csv_refusal("a,b\n1,2\n3,4x\n"),
            ", line 3, column b: expected a finite number, got \"4x\"");
}

TEST(BrokenCsv, WithMissingOrInfiniteNumbers) {
  EXPECT_EQ(csv_refusal("a,b\n1,2\n,4\n"),
            ", line 3, column a: expected a finite number, got \"\"; fill missing values or drop "
            "the row first");
  for (const std::string value : {"nan", "NaN", "inf", "-Inf", "1e999"}) {
    EXPECT_EQ(csv_refusal("a,b\n" + value + ",2\n"),
              ", line 2, column a: expected a finite number, got \"" + value + "\"");
  }
}

TEST(BrokenCsv, WithRaggedRows) {
  EXPECT_EQ(csv_refusal("a,b\n1,2\n\n1\n"), ", line 4: expected 2 fields as in line 1, got 1");
  EXPECT_EQ(csv_refusal("a,b\n1,2,3\n"), ", line 2: expected 2 fields as in line 1, got 3");
}

TEST(BrokenCsv, WithAnUnclosedQuote) {
  EXPECT_EQ(csv_refusal("a,b\n1,\"2\n"),
            ", line 2: expected a closing quote before the end of the line");
}

TEST(Csv, ReadsTimeAndIdColumns) {
  const TemporaryFile file(".csv", "a,shop,when\n1,north,2020-01-06\n2, south ,2020-01-07\n");
  models::CsvLayout layout = kTimed;
  layout.time_column = "when";
  layout.id_column = "shop";
  const CsvTable table = read_csv(file.path(), {"a"}, layout);
  EXPECT_THAT(table.rows.labels, ElementsAre("2020-01-06", "2020-01-07"));
  EXPECT_THAT(table.rows.lines, ElementsAre(2, 3));
  EXPECT_THAT(table.ids, ElementsAre("north", "south"));
  layout.time_column = "day";
  EXPECT_THAT([&] { read_csv(file.path(), {"a"}, layout); },
              ThrowsMessage<c10::ValueError>(HasSubstr("expected one column day, got none")));
}

TEST(BrokenCsv, WithNamesThatAreNotUtf8) {
  const TemporaryFile ids(".csv", "a,shop\n1,north\n2,caf\xE9\n3,\n");
  const models::CsvLayout layout{
      .time_column = "", .id_column = "shop", .open_columns = {}, .timed = false};
  EXPECT_THAT([&] { read_csv(ids.path(), {"a"}, layout); },
              ThrowsMessage<c10::ValueError>(HasSubstr(
                  ", line 3, column shop: expected text in UTF-8, got \"caf\\xE9\"; convert")));
  EXPECT_EQ(csv_refusal("caf\xE9\n1\n", {"caf\xE9"}),
            ", line 1: expected names of columns in UTF-8, got caf\\xE9; convert the file, for "
            "example by iconv -f LATIN1 -t UTF-8");
  const TemporaryFile empty(".csv", "a,shop\n1,north\n2, \n");
  EXPECT_THAT([&] { read_csv(empty.path(), {"a"}, layout); },
              ThrowsMessage<c10::ValueError>(
                  HasSubstr(", line 3, column shop: expected the name of a series, got an empty")));
}

TEST(BrokenCsv, IsQuotedInPart) {
  EXPECT_EQ(
      csv_refusal("a,b\n1," + std::string(100'000, '7') + "x\n"),
      ", line 2, column b: expected a finite number, got \"" + std::string(60, '7') + "...\"");
  EXPECT_EQ(
      csv_refusal("a\x88,a\x88,b\n1,2,3\n", {"a\x88"}),
      ", line 1: expected one column a\\x88, got 2; the file has the columns a\\x88, a\\x88, b");
  EXPECT_EQ(csv_refusal("a,b\n1,\x1B[31m2\n"),
            ", line 2, column b: expected a finite number, got \"\\x1B[31m2\"");
  std::string header = "c0";
  for (int i = 1; i < 1000; ++i) header += ",c" + std::to_string(i);
  const std::string message = csv_refusal(header + "\n1\n");
  EXPECT_THAT(message, HasSubstr("c29 and 970 more"));
  EXPECT_LT(message.size(), 300u);
}

TEST(BrokenCsv, WithAnEndlessLine) {
  EXPECT_THAT([] { read_csv("/dev/zero", {"a"}); },
              ThrowsMessage<c10::ValueError>(
                  HasSubstr("/dev/zero, line 1: expected a line of less than 16777216 bytes")));
}

TEST(Panel, OfAWideTableHasASeriesPerTarget) {
  const TemporaryFile file(".csv", "t,a,b,f,x,s\n1,10,20,0,5,9\n2,11,21,1,6,9\n");
  const std::vector<Series> panel = read_panel(file.path(), {.targets = {"b", "a"},
                                                             .time_column = "",
                                                             .id_column = "",
                                                             .futr_exog = {"f"},
                                                             .hist_exog = {"x"},
                                                             .stat_exog = {"s"}});
  ASSERT_EQ(panel.size(), 2u);
  EXPECT_EQ(panel[0].name, "b");
  EXPECT_EQ(panel[1].known, 2);
  EXPECT_TRUE(
      torch::equal(panel[1].values,
                   torch::tensor({10.0, 11.0, 0.0, 1.0, 5.0, 6.0}, torch::kDouble).view({3, 2})));
  EXPECT_EQ(panel[0].stat.item<double>(), 9.0);
  EXPECT_EQ(panel[0].axis, panel[1].axis) << "a wide table has one axis for all its series";
}

TEST(Panel, OfALongTableHasASeriesPerId) {
  const TemporaryFile file(".csv", "t,id,y,s\n1,p,1,7\n1,q,4,8\n2,p,2,7\n3,p,3,7\n");
  PanelColumns columns{.targets = {"y"},
                       .time_column = "t",
                       .id_column = "id",
                       .futr_exog = {},
                       .hist_exog = {},
                       .stat_exog = {"s"}};
  const std::vector<Series> panel = read_panel(file.path(), columns);
  ASSERT_EQ(panel.size(), 2u);
  EXPECT_EQ(panel[0].name, "p");
  EXPECT_THAT(labels_of(panel[0]), ElementsAre("1", "2", "3"));
  EXPECT_TRUE(torch::equal(panel[1].values, torch::full({1, 1}, 4.0, torch::kDouble)));
  EXPECT_EQ(panel[1].stat.item<double>(), 8.0);
  columns.targets = {"y", "s"};
  columns.stat_exog = {};
  EXPECT_THAT([&] { read_panel(file.path(), columns); },
              ThrowsMessage<c10::ValueError>(HasSubstr("expected one target in a table with")));
  columns.targets = {"t"};
  columns.stat_exog = {"y"};
  EXPECT_THAT([&] { read_panel(file.path(), columns); },
              ThrowsMessage<c10::ValueError>(HasSubstr(
                  "expected one value of y, a static column, in all rows of p, got 1 to 3")));
}

TEST(OpenPanel, HasTheHorizonAfterTheLastKnownValue) {
  const TemporaryFile file(".csv", "t,a,f\n1,10,0\n2,11,1\n3,,2\n4,,3\n5,,4\n");
  PanelColumns columns{.targets = {"a"},
                       .time_column = "",
                       .id_column = "",
                       .futr_exog = {"f"},
                       .hist_exog = {},
                       .stat_exog = {}};
  const Series series = read_open_panel(file.path(), columns, 2)[0];
  EXPECT_EQ(series.known, 2);
  EXPECT_THAT(labels_of(series), ElementsAre("1", "2", "3", "4"));
  EXPECT_TRUE(torch::equal(
      series.values,
      torch::tensor({10.0, 11.0, 0.0, 0.0, 0.0, 1.0, 2.0, 3.0}, torch::kDouble).view({2, 4})));
  EXPECT_THAT([&] { read_open_panel(file.path(), columns, 4); },
              ThrowsMessage<c10::ValueError>(HasSubstr(
                  "expected 4 rows after the last known value of a, with f and an empty target, "
                  "got 3")));
  columns.futr_exog = {};
  EXPECT_THAT(labels_of(read_open_panel(file.path(), columns, 4)[0]),
              ElementsAre("1", "2", "3", "4", "5", "+4"));
}

TEST(OpenPanel, RejectsGaps) {
  const TemporaryFile file(".csv", "t,a\n1,10\n2,\n3,12\n");
  EXPECT_THAT(
      [&] {
        read_open_panel(file.path(), {{"a"}, "", "", {}, {}, {}}, 2);
      },
      ThrowsMessage<c10::ValueError>(
          HasSubstr("expected empty fields of a only after its last known value")));
}

/// Series whose values encode their position: 100 * series + row.
std::shared_ptr<SeriesStore> counting_series(const std::vector<int64_t>& rows) {
  std::vector<torch::Tensor> values;
  for (size_t i = 0; i < rows.size(); ++i) {
    values.push_back(torch::arange(static_cast<double>(rows[i])).unsqueeze(0) +
                     100.0 * static_cast<double>(i));
  }
  return std::make_shared<SeriesStore>(values, torch::zeros({static_cast<int64_t>(rows.size()), 0}),
                                       0);
}

TEST(Windows, CoverEveryPositionOfEverySeries) {
  const WindowDataset train(counting_series({10, 10}), {{0, 6}, {0, 6}}, /*past_inside=*/true,
                            {.input_size = 3, .horizon = 2});
  EXPECT_EQ(train.size(), 2 * 2);
  const auto batch = train.batch(torch::tensor({0, 1, 3}));
  EXPECT_TRUE(torch::equal(
      batch.inputs.insample_y.squeeze(2),
      torch::tensor({{0.0f, 1.0f, 2.0f}, {100.0f, 101.0f, 102.0f}, {101.0f, 102.0f, 103.0f}})));
  EXPECT_TRUE(torch::equal(batch.future.squeeze(2),
                           torch::tensor({{3.0f, 4.0f}, {103.0f, 104.0f}, {104.0f, 105.0f}})));
  EXPECT_TRUE(torch::equal(batch.series, torch::tensor({{0}, {1}, {1}})));
  EXPECT_EQ(train.first_future_row(3), 4);
}

TEST(Windows, OfLaterPartsHaveTheirPastInTheEarlierPart) {
  const WindowDataset test(counting_series({10}), {{6, 10}}, /*past_inside=*/false,
                           {.input_size = 3, .horizon = 2});
  EXPECT_EQ(test.size(), 3);
  const auto batch = test.batch(torch::arange(3));
  EXPECT_TRUE(
      torch::equal(batch.inputs.insample_y[0].squeeze(1), torch::tensor({3.0f, 4.0f, 5.0f})));
  EXPECT_TRUE(torch::equal(batch.future[2].squeeze(1), torch::tensor({8.0f, 9.0f})));
  EXPECT_EQ(test.first_future_row(0), 6);
}

TEST(Windows, OfEtth1AreThoseOfTheLiterature) {
  const WindowDataset test(counting_series({17420}), {{11520, 14400}}, false,
                           {.input_size = 336, .horizon = 96});
  EXPECT_EQ(test.size(), 2785);
}

TEST(Windows, AllowSeriesOfDifferentLengths) {
  const WindowDataset train(counting_series({5, 7}), {{0, 5}, {0, 7}}, true,
                            {.input_size = 3, .horizon = 2});
  EXPECT_EQ(train.size(), 1 + 3);
  const auto batch = train.batch(torch::arange(4));
  EXPECT_TRUE(torch::equal(batch.series.squeeze(1), torch::tensor({0, 1, 1, 1})));
  EXPECT_TRUE(torch::equal(batch.future[3].squeeze(1), torch::tensor({105.0f, 106.0f})));
}

TEST(Windows, CanContainAllSeries) {
  const auto store = counting_series({8, 8});
  const WindowDataset train(store, {{0, 8}, {0, 8}}, true,
                            {.input_size = 3, .horizon = 2, .together = true});
  EXPECT_EQ(train.size(), 4);
  const auto batch = train.batch(torch::tensor({3}));
  EXPECT_TRUE(torch::equal(batch.inputs.insample_y[0],
                           torch::tensor({{3.0f, 103.0f}, {4.0f, 104.0f}, {5.0f, 105.0f}})));
  EXPECT_TRUE(torch::equal(batch.future[0], torch::tensor({{6.0f, 106.0f}, {7.0f, 107.0f}})));
  EXPECT_THAT(
      [&] {
        WindowDataset(store, {{0, 8}, {0, 7}}, true,
                      {.input_size = 3, .horizon = 2, .together = true});
      },
      ThrowsMessage<c10::ValueError>(HasSubstr("expected series with the same rows")));
}

TEST(Windows, CarryExogenousColumns) {
  // Row r of series s: target r + 100 s, futr 1000 + target, hist 2000 + target; static s.
  std::vector<torch::Tensor> values;
  for (double s = 0; s < 2; ++s) {
    const torch::Tensor target = torch::arange(6.0) + 100.0 * s;
    values.push_back(torch::stack({target, target + 1000.0, target + 2000.0}));
  }
  const auto store =
      std::make_shared<SeriesStore>(values, torch::tensor({{0.0f}, {1.0f}}), /*futr_exog=*/1);
  const auto alone = WindowDataset(store, {{0, 6}, {0, 6}}, true, {.input_size = 3, .horizon = 2})
                         .batch(torch::tensor({3}))
                         .inputs;  // the second window of the second series
  EXPECT_TRUE(torch::equal(alone.futr_exog.squeeze(), torch::arange(1101.0f, 1106.0f)));
  EXPECT_TRUE(torch::equal(alone.hist_exog.squeeze(), torch::arange(2101.0f, 2104.0f)));
  EXPECT_TRUE(torch::equal(alone.stat_exog, torch::tensor({{1.0f}})));
  const auto futr_only = std::make_shared<SeriesStore>(
      std::vector<torch::Tensor>{values[0].slice(0, 0, 2), values[1].slice(0, 0, 2)},
      torch::zeros({2, 0}), 1);
  const auto together = WindowDataset(futr_only, {{0, 6}, {0, 6}}, true,
                                      {.input_size = 3, .horizon = 2, .together = true})
                            .batch(torch::tensor({0}))
                            .inputs;
  EXPECT_EQ(together.futr_exog.sizes(), (std::vector<int64_t>{1, 1, 5, 2}));
  EXPECT_TRUE(torch::equal(together.futr_exog[0][0].select(1, 1), torch::arange(1100.0f, 1105.0f)));
  EXPECT_FALSE(together.hist_exog.defined());
}

TEST(ScalerOfAColumn, StandardisesAndInverts) {
  torch::manual_seed(1);
  const torch::Tensor values = torch::randn({3, 50}, torch::kDouble) * 4.0 + 7.0;
  const ColumnScaler scaler = ColumnScaler::fit(values);
  const torch::Tensor scaled = scaler.transform(values);
  EXPECT_LT(scaled.mean(1).abs().max().item<double>(), 1e-12);  // rounding of 50 sums
  EXPECT_LT((scaled.square().mean(1) - 1.0).abs().max().item<double>(), 1e-12);
  EXPECT_TRUE(torch::allclose(scaler.inverse(scaled), values, 1e-14));
}

TEST(ScalerOfAColumn, LeavesAConstantColumnFinite) {
  const torch::Tensor values = torch::full({1, 7}, 0.1, torch::kDouble);
  const ColumnScaler scaler = ColumnScaler::fit(values);
  EXPECT_EQ(scaler.deviation.item<double>(), 1.0);
  EXPECT_LT(scaler.transform(values + 1.0).sub(1.0).abs().max().item<double>(), 1e-12);
  const torch::Tensor zeros = torch::zeros({1, 7}, torch::kDouble);
  EXPECT_EQ(ColumnScaler::fit(zeros).deviation.item<double>(), 1.0);
}

}  // namespace
}  // namespace flash::tests
