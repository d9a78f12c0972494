// Times of rows: parsing, order, steps and gaps.

#include "data/time_axis.h"

#include <c10/util/Exception.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "data/panel.h"
#include "models/temporary_file.h"

namespace flash::tests {
namespace {

using models::describe_times;
using models::PanelColumns;
using models::parse_timestamp;
using models::read_panel;
using models::Series;
using models::Timestamp;
using testing::ElementsAre;
using testing::HasSubstr;

int64_t microseconds(const std::string& text) {
  const auto time = parse_timestamp(text);
  EXPECT_TRUE(time) << text;
  return time ? time->value : 0;
}

TEST(Timestamps, AreIsoDatesAndTimesOrIntegers) {
  constexpr int64_t kSecond = 1'000'000, kDay = 86'400 * kSecond;
  EXPECT_EQ(microseconds("1970-01-02"), kDay);
  EXPECT_EQ(microseconds("1970/01/02"), kDay);
  EXPECT_EQ(microseconds("1969-12-31"), -kDay);
  EXPECT_EQ(microseconds("2000-03-01") - microseconds("2000-02-28"), 2 * kDay);
  EXPECT_EQ(microseconds("1900-03-01") - microseconds("1900-02-28"), kDay);
  EXPECT_EQ(microseconds("1970-02"), 31 * kDay);
  EXPECT_EQ(microseconds("1970-01-01 00:00:01"), kSecond);
  EXPECT_EQ(microseconds("1970-01-01T01:02"), 3720 * kSecond);
  EXPECT_EQ(microseconds("1970-01-01T00:00:00.25"), kSecond / 4);
  EXPECT_EQ(microseconds("1970-01-01T00:00:00,000001000"), 1);
  EXPECT_EQ(microseconds("1970-01-01T01:00:00Z"), 3600 * kSecond);
  EXPECT_EQ(microseconds("1970-01-01T01:00:00+01:00"), 0);
  EXPECT_EQ(microseconds("1970-01-01 01:00:00.5-0130"), 9000 * kSecond + kSecond / 2);
  EXPECT_EQ(microseconds("1970-01-01T00:00-08"), 8 * 3600 * kSecond);
  EXPECT_EQ(microseconds("-17"), -17);
  EXPECT_EQ(microseconds("+4611686018427387904"), int64_t{1} << 62);
  EXPECT_EQ(parse_timestamp("2012")->kind, Timestamp::Kind::kInteger);
  EXPECT_EQ(parse_timestamp("2012-01-01 00:00:00")->kind, Timestamp::Kind::kLocal);
  EXPECT_EQ(parse_timestamp("2012-01-01T00:00:00Z")->kind, Timestamp::Kind::kZoned);
  EXPECT_EQ(parse_timestamp("0000-01-01")->kind, Timestamp::Kind::kLocal);
  EXPECT_EQ(parse_timestamp("9999-12-31 23:59:59.999999")->kind, Timestamp::Kind::kLocal);
}

TEST(Timestamps, RejectOtherFormats) {
  for (const std::string text : {"",
                                 "day 1",
                                 "1.5",
                                 "1e3",
                                 "4611686018427387905",
                                 "99999999999999999999",
                                 "2012-13-01",
                                 "2012-02-30",
                                 "2011-02-29",
                                 "2012-00-01",
                                 "2012-1-1",
                                 "2012-01/01",
                                 "01/02/2012",
                                 "12-01-01",
                                 "2012-01-01T",
                                 "2012-01-01 ",
                                 "2012-01-01 1:00",
                                 "2012-01-01 24:00",
                                 "2012-01-01 23:60",
                                 "2012-01-01 23:59:60",
                                 "2012-01-01 00:00:00.",
                                 "2012-01-01 00:00:00.0000001",
                                 "2012-01-01 00:00:00 ",
                                 "2012-01-01 00:00:00+1",
                                 "2012-01-01 00:00:00+01:0",
                                 "2012-01-01 00:00:00+25:00",
                                 "2012-01-01 00:00:00+01:60",
                                 "2012-01-01 00:00:00ZZ",
                                 "2012-01-01x",
                                 "2012-01-",
                                 "2012-",
                                 "2012-01-01T00:00:00+01:00x",
                                 "NaT",
                                 "0x10",
                                 "--5",
                                 "+"}) {
    EXPECT_FALSE(parse_timestamp(text)) << text;
  }
}

/// A table with these times and a series "y", or with several lists of times the series "p" and
/// "q".
std::string table(const std::vector<std::string>& times, const std::string& ids = "") {
  std::string text = ids.empty() ? "t,y\n" : "t,id,y\n";
  for (size_t i = 0; i < times.size(); ++i) {
    text += times[i] + "," + (ids.empty() ? "" : std::string(1, ids[i]) + ",") + std::to_string(i) +
            "\n";
  }
  return text;
}

std::vector<Series> read(const std::string& text, bool sort = false) {
  const TemporaryFile file(".csv", text);
  PanelColumns columns;
  columns.targets = {"y"};
  if (text.starts_with("t,id")) columns.id_column = "id";
  columns.sort = sort;
  return read_panel(file.path(), columns);
}

std::string times_refusal(const std::string& text, bool sort = false) {
  try {
    read(text, sort);
  } catch (const c10::ValueError& error) {
    const std::string message = error.what_without_backtrace();
    return message.substr(message.find(".csv") + 4);
  }
  return "not refused";
}

std::string description(const std::vector<std::string>& times, const std::string& ids = "") {
  return describe_times(read(table(times, ids)));
}

std::vector<double> values(const Series& series) {
  const at::Tensor row = series.values[0].contiguous();
  return {row.const_data_ptr<double>(), row.const_data_ptr<double>() + row.numel()};
}

TEST(TimeAxis, RejectsUnsortedRows) {
  EXPECT_EQ(times_refusal(table({"2020-01-01", "2020-01-03", "2020-01-02"})),
            ", line 4, column t: expected rows in order of time, got 2020-01-02 after 2020-01-03 "
            "in line 3; --sort puts them in order");
  EXPECT_EQ(times_refusal(table({"3", "2", "1"})),
            ", line 3, column t: expected rows in order of time, got 2 after 3 in line 2; --sort "
            "puts them in order");
  EXPECT_EQ(times_refusal(table({"1", "2", "2", "1"}, "pqpq")),
            ", line 5, column t: expected rows of q in order of time, got 1 after 2 in line 3; "
            "--sort puts them in order");
  // Sorted as text, but not as times.
  EXPECT_THAT(times_refusal(table({"2020-01-01T00:00+00:00", "2020-01-01T00:30+01:00"})),
              HasSubstr("expected rows in order of time"));
}

TEST(TimeAxis, RejectsDuplicateTimes) {
  EXPECT_EQ(times_refusal(table({"2020-01-01", "2020-01-02", "2020-01-02"})),
            ", line 4, column t: expected each time once, got 2020-01-02 as in line 3; drop one of "
            "the rows, or name the column of several series by --id-column");
  for (const bool sort : {false, true}) {
    EXPECT_EQ(times_refusal(table({"1", "1", "2", "2", "2"}, "pqpqq"), sort),
              ", line 6, column t: expected each time of q once, got 2 as in line 5; drop one of "
              "the rows");
  }
  EXPECT_THAT(times_refusal(table({"2", "1", "2"}), /*sort=*/true),
              HasSubstr(", line 4, column t: expected each time once, got 2 as in line 2"));
}

TEST(TimeAxis, ReportsTheLineOfAnInvalidTime) {
  EXPECT_EQ(times_refusal(table({"2020-01-01", "2020-02-30"})),
            ", line 3, column t: expected a date such as 2012-01-31, a date and time such as "
            "2012-01-31 18:30:00, or an integer, got \"2020-02-30\"");
  EXPECT_THAT(times_refusal(table({"day 1", "day 2"})),
              testing::AllOf(HasSubstr(", line 2, column t: expected a date such as"),
                             HasSubstr("got \"day 1\"; name the column of times by --time-column, "
                                       "or give --no-time-column where")));
  EXPECT_EQ(times_refusal(table({"2020-01-01", "7"})),
            ", line 3, column t: expected times of one kind, got \"7\" and, in line 2, "
            "\"2020-01-01\"");
  EXPECT_THAT(times_refusal(table({"2020-01-01", "2020-01-02T00:00Z"})),
              HasSubstr("expected times of one kind"));
}

TEST(TimeAxis, SortsTheRowsOfEachSeries) {
  const std::vector<Series> panel = read(table({"3", "9", "1", "2", "8"}, "pqppq"), /*sort=*/true);
  EXPECT_THAT(values(panel[0]), ElementsAre(2, 3, 0));
  EXPECT_THAT(values(panel[1]), ElementsAre(4, 1));
  EXPECT_EQ(panel[0].label(0), "1");
  EXPECT_THAT(panel[0].axis->lines, ElementsAre(4, 5, 2));
  const std::vector<Series> wide = read(table({"2020-03-01", "2020-02-01"}), /*sort=*/true);
  EXPECT_THAT(values(wide[0]), ElementsAre(1, 0));
}

TEST(TimeColumn, IsDetectedByItsContents) {
  // A pandas index (sorted integers) comes first, then dates: the dates are the time column.
  EXPECT_THAT(describe_times(read(",ds,y\n0,2020-01-01,5\n1,2020-01-02,6\n")),
              HasSubstr("column ds, 2020-01-01 to 2020-01-02"));
  EXPECT_THAT(times_refusal(",ds,y\n0,2020-01-02,5\n1,2020-01-01,6\n"),
              HasSubstr("line 3, column ds"));
  EXPECT_THAT(describe_times(read("hour,y,word\n7,5,a\n8,6,b\n")),
              HasSubstr("column hour, 7 to 8"));
  EXPECT_THAT(describe_times(read(",y\n2020-01-01,5\n2020-01-02,6\n")),
              HasSubstr("column without a name, 2020-01-01 to 2020-01-02"));
  EXPECT_THAT(times_refusal("y\n5\n6\n"),
              HasSubstr(": expected a column of times, got none beside the columns in use, y; name "
                        "the column of times by --time-column, or give --no-time-column where"));
  EXPECT_THAT(times_refusal("y,word\n5,calm\n"), HasSubstr("line 2, column word: expected a date"));
}

TEST(TimeColumn, MayBeMissingIfUntimed) {
  const TemporaryFile file(".csv", "word,y\na,5\nb,6\na,7\n");
  PanelColumns columns;
  columns.targets = {"y"};
  columns.untimed = true;
  const std::vector<Series> panel = read_panel(file.path(), columns);
  EXPECT_EQ(panel[0].label(0), "1");
  EXPECT_EQ(panel[0].label(2), "3");
  EXPECT_EQ(panel[0].label(3), "+1");
  EXPECT_EQ(describe_times(panel), "Time: none; the rows are in the order of the file");
}

TEST(Step, IsTheMostFrequentOne) {
  EXPECT_EQ(description({"2020-01-01", "2020-01-02", "2020-01-03"}),
            "Time: column t, 2020-01-01 to 2020-01-03, step 1 day");
  EXPECT_THAT(description({"5", "10", "15"}), testing::EndsWith("5 to 15, step 5"));
  EXPECT_THAT(description({"2020-01-01 00:00:00", "2020-01-01 00:15:00"}),
              testing::EndsWith(", step 15 minutes"));
  EXPECT_THAT(description({"2020-01-01 00:00", "2020-01-01 01:30"}),
              testing::EndsWith(", step 90 minutes"));
  EXPECT_THAT(description({"2020-01-01T00:00:00.00", "2020-01-01T00:00:00.02"}),
              testing::EndsWith(", step 20 milliseconds"));
  EXPECT_THAT(description({"2020-01-01", "2020-01-08"}), testing::EndsWith(", step 7 days"));
  EXPECT_THAT(description({"2020-01-01"}), testing::EndsWith(", one row each"));
}

TEST(Step, MayBeACalendarMonthOrYear) {
  EXPECT_THAT(description({"2020-01-01", "2020-02-01", "2020-03-01", "2020-04-01"}),
              testing::EndsWith(", step 1 month"));
  EXPECT_THAT(description({"2020-01", "2020-02", "2020-03"}), testing::EndsWith(", step 1 month"));
  EXPECT_THAT(description({"2020-01-31", "2020-02-29", "2020-03-31", "2020-04-30"}),
              testing::EndsWith(", step 1 month"));
  EXPECT_THAT(description({"2021-01-30", "2021-02-28", "2021-03-30"}),
              testing::EndsWith(", step 1 month"));
  EXPECT_THAT(description({"2020-03-31", "2020-06-30", "2020-09-30"}),
              testing::EndsWith(", step 3 months"));
  EXPECT_THAT(description({"2018-01-01", "2019-01-01", "2020-01-01", "2021-01-01"}),
              testing::EndsWith(", step 1 year"));
  EXPECT_THAT(description({"2020-01-01", "2020-02-01", "2020-04-01", "2020-05-01"}),
              testing::EndsWith(", step 1 month; 1 gap of 2 months before line 4"));
  // With daylight saving time two days of a year have 23 and 25 hours.
  EXPECT_THAT(description({"2020-03-28T00:00+01:00", "2020-03-29T00:00+01:00",
                           "2020-03-30T00:00+02:00", "2020-03-31T00:00+02:00"}),
              testing::EndsWith(", step 1 day"));
  EXPECT_THAT(
      description({"2020-03-29T01:00+01:00", "2020-03-29T03:00+02:00", "2020-03-29T04:00+02:00"}),
      testing::EndsWith(", step 1 hour"));
}

TEST(Gaps, AreCountedAndTheFirstIsNamed) {
  EXPECT_THAT(description({"1", "2", "3", "5", "6", "9", "10"}),
              testing::EndsWith("1 to 10, step 1; 2 gaps, the first of 2 before line 5"));
  EXPECT_THAT(description({"2020-01-01", "2020-01-02", "2020-01-05", "2020-01-06"}),
              testing::EndsWith(", step 1 day; 1 gap of 3 days before line 4"));
  EXPECT_THAT(description({"0", "10", "20", "25", "35"}),
              testing::EndsWith(", step 10; 1 shorter step of 5 before line 5"));
  EXPECT_THAT(description({"0", "1", "3", "10", "20", "35"}),
              HasSubstr("no regular step, most often 1 (20 % of the rows)"));
  // A step that half of the rows have is regular.
  EXPECT_THAT(description({"0", "1", "2", "12", "27"}),
              testing::EndsWith("0 to 27, step 1; 2 gaps, the first of 10 before line 5"));
  // Within each series, not between series.
  EXPECT_THAT(description({"1", "2", "3", "11", "12", "14"}, "pppqqq"),
              testing::EndsWith("1 to 14, step 1; 1 gap of 2 before line 7"));
}

}  // namespace
}  // namespace flash::tests
