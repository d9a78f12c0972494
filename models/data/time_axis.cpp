#include "data/time_axis.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <chrono>
#include <map>
#include <optional>

#include "data/csv_reader.h"

namespace flash::models {
namespace {

using Axes = std::vector<std::shared_ptr<const TimeAxis>>;

void check_order(const std::string& path, const TimeAxis& axis, const std::string& series) {
  const std::string of = series.empty() ? "" : " of " + printable(series);
  for (size_t i = 1; i < axis.times.size(); ++i) {
    const int64_t before = axis.times[i - 1].value, now = axis.times[i].value;
    if (now > before) continue;
    const auto place = [&] {
      return c10::str(path, ", line ", axis.lines[i], ", column ", shown_column(axis.column));
    };
    TORCH_CHECK_VALUE(
        now < before, place(), ": expected each time", of, " once, got ", axis.labels[i],
        " as in line ", axis.lines[i - 1], "; drop one of the rows",
        series.empty() ? ", or name the column of several series by --id-column" : "");
    TORCH_CHECK_VALUE(false, place(), ": expected rows", of, " in order of time, got ",
                      axis.labels[i], " after ", axis.labels[i - 1], " in line ", axis.lines[i - 1],
                      "; --sort puts them in order");
  }
}

template <class Value>
std::vector<Value> chosen(const std::vector<Value>& all, const std::vector<int64_t>& rows) {
  std::vector<Value> some;
  if (all.empty()) return some;
  some.reserve(rows.size());
  for (const int64_t row : rows) some.push_back(all[static_cast<size_t>(row)]);
  return some;
}

/// A local time as a calendar date and a time of day.
struct CalendarTime {
  explicit CalendarTime(int64_t local) {
    const std::chrono::sys_time<std::chrono::microseconds> time{std::chrono::microseconds{local}};
    const auto day_of_time = std::chrono::floor<std::chrono::days>(time);
    const std::chrono::year_month_day date{day_of_time};
    const std::chrono::year_month_day_last last{date.year(), date.month() / std::chrono::last};
    month = static_cast<int>(date.year()) * int64_t{12} + static_cast<unsigned>(date.month());
    day = static_cast<unsigned>(date.day());
    days_in_month = static_cast<unsigned>(last.day());
    time_of_day = (time - day_of_time).count();
  }
  int64_t month;
  unsigned day, days_in_month;
  int64_t time_of_day;
};

/// Whether all rows fall on the same day of the month, or on the last day of shorter months.
bool is_monthly(const Axes& axes) {
  unsigned day = 0;
  for (const auto& axis : axes) {
    for (const Timestamp& time : axis->times) {
      if (time.kind == Timestamp::Kind::kInteger) return false;
      day = std::max(day, CalendarTime(time.local).day);
    }
  }
  std::optional<int64_t> time_of_day;
  for (const auto& axis : axes) {
    for (const Timestamp& time : axis->times) {
      const CalendarTime calendar(time.local);
      if (!time_of_day) time_of_day = calendar.time_of_day;
      if (calendar.time_of_day != *time_of_day ||
          calendar.day != std::min(day, calendar.days_in_month)) {
        return false;
      }
    }
  }
  return true;
}

enum class Count { kIntegers, kMicroseconds, kWallClock, kMonths };

int64_t position(const Timestamp& time, Count count) {
  if (count == Count::kMonths) return CalendarTime(time.local).month;
  return count == Count::kWallClock ? time.local : time.value;
}

std::string text_of(int64_t step, Count count) {
  if (count == Count::kIntegers) return std::to_string(step);
  return count == Count::kMonths ? months_text(step) : duration_text(step);
}

/// The difference of neighbouring rows.
struct Gap {
  int64_t size;
  int64_t line;  ///< of the second row
};

std::vector<Gap> gaps_between(const Axes& axes, Count count) {
  std::vector<Gap> gaps;
  for (const auto& axis : axes) {
    for (size_t i = 1; i < axis->times.size(); ++i) {
      gaps.push_back(
          {position(axis->times[i], count) - position(axis->times[i - 1], count), axis->lines[i]});
    }
  }
  return gaps;
}

/// The most frequent step, and how often it occurs.
std::pair<int64_t, size_t> most_frequent(const std::vector<Gap>& gaps) {
  std::map<int64_t, size_t> counts;
  for (const Gap& gap : gaps) ++counts[gap.size];
  const auto found =
      std::max_element(counts.begin(), counts.end(),
                       [](const auto& a, const auto& b) { return a.second < b.second; });
  return {found->first, found->second};
}

/// "; 3 gaps, the first of 2 days before line 17"
std::string exceptions(const std::vector<Gap>& gaps, int64_t step, Count count, bool longer) {
  int64_t number = 0;
  const Gap* first = nullptr;
  for (const Gap& gap : gaps) {
    if (longer ? gap.size <= step : gap.size >= step) continue;
    ++number;
    if (first == nullptr || gap.line < first->line) first = &gap;
  }
  if (number == 0) return "";
  return "; " + count_text(number, longer ? "gap" : "shorter step") +
         (number == 1 ? " of " : ", the first of ") + text_of(first->size, count) +
         " before line " + std::to_string(first->line);
}

std::string describe_steps(const Axes& axes) {
  const bool integers = axes.front()->times.front().kind == Timestamp::Kind::kInteger;
  Count count = integers           ? Count::kIntegers
                : is_monthly(axes) ? Count::kMonths
                                   : Count::kMicroseconds;
  std::vector<Gap> gaps = gaps_between(axes, count);
  if (gaps.empty()) return "one row each";
  auto [step, rows] = most_frequent(gaps);
  if (count == Count::kMicroseconds && step % kMicrosecondsPerDay == 0) {
    // Calendar days: with daylight saving time, two days a year do not have 24 hours.
    count = Count::kWallClock;
    gaps = gaps_between(axes, count);
    std::tie(step, rows) = most_frequent(gaps);
  }
  if (2 * rows < gaps.size()) {
    return "no regular step, most often " + text_of(step, count) + " (" +
           std::to_string(100 * rows / gaps.size()) + " % of the rows)";
  }
  return "step " + text_of(step, count) + exceptions(gaps, step, count, /*longer=*/true) +
         exceptions(gaps, step, count, /*longer=*/false);
}

}  // namespace

std::shared_ptr<const TimeAxis> make_time_axis(const std::string& path, const CsvTimes& table,
                                               SeriesRows& series, bool sort) {
  if (sort) {
    std::stable_sort(series.rows.begin(), series.rows.end(), [&](int64_t a, int64_t b) {
      return table.times[static_cast<size_t>(a)].value < table.times[static_cast<size_t>(b)].value;
    });
  }
  auto axis = std::make_shared<TimeAxis>(TimeAxis{.column = table.column,
                                                  .labels = chosen(table.labels, series.rows),
                                                  .times = chosen(table.times, series.rows),
                                                  .lines = chosen(table.lines, series.rows)});
  check_order(path, *axis, series.name);
  return axis;
}

std::string describe_times(const Axes& axes) {
  if (axes.front()->times.empty()) return "Time: none; the rows are in the order of the file";
  std::string first, last;
  int64_t from = 0, to = 0;
  for (const auto& axis : axes) {
    if (first.empty() || axis->times.front().value < from) {
      from = axis->times.front().value;
      first = axis->labels.front();
    }
    if (last.empty() || axis->times.back().value > to) {
      to = axis->times.back().value;
      last = axis->labels.back();
    }
  }
  return "Time: column " + shown_column(axes.front()->column) + ", " + first + " to " + last +
         ", " + describe_steps(axes);
}

}  // namespace flash::models
