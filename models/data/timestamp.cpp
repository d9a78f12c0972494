#include "data/timestamp.h"

#include <charconv>
#include <chrono>
#include <cstdlib>

namespace flash::models {
namespace {

constexpr int64_t kLargestInteger = int64_t{1} << 62;  // differences of two fit int64

/// Parses text from left to right. After one failure, everything fails.
class Scanner {
 public:
  explicit Scanner(std::string_view text) : rest_(text) {}

  bool good() const { return good_; }
  bool at_end() const { return rest_.empty(); }
  bool next_is(std::string_view characters) const {
    return !rest_.empty() && characters.find(rest_.front()) != std::string_view::npos;
  }
  char take() {
    if (rest_.empty()) {
      good_ = false;
      return '\0';
    }
    const char first = rest_.front();
    rest_.remove_prefix(1);
    return first;
  }
  void expect(char wanted) { good_ = take() == wanted && good_; }
  /// Exactly `count` digits.
  int digits(int count) {
    int value = 0;
    for (int i = 0; i < count; ++i) {
      const char c = take();
      good_ = good_ && c >= '0' && c <= '9';
      value = 10 * value + (c - '0');
    }
    return good_ ? value : 0;
  }
  /// The digits of a decimal fraction, in millionths; those after the sixth must be 0.
  int64_t millionths() {
    int64_t value = 0;
    int count = 0;
    for (; next_is("0123456789"); ++count) {
      const char c = take();
      if (count < 6) value = 10 * value + (c - '0');
      good_ = good_ && (count < 6 || c == '0');
    }
    good_ = good_ && count > 0;
    for (; count < 6; ++count) value *= 10;
    return value;
  }
  void must(bool condition) { good_ = good_ && condition; }

 private:
  std::string_view rest_;
  bool good_ = true;
};

/// Days since 1970-01-01. The day may be missing: 2012-01.
int64_t scan_date(Scanner& scanner) {
  const int year = scanner.digits(4);
  const char separator = scanner.take();
  scanner.must(separator == '-' || separator == '/');
  const int month = scanner.digits(2);
  int day = 1;
  if (!scanner.at_end()) {
    scanner.expect(separator);
    day = scanner.digits(2);
  }
  const std::chrono::year_month_day date{std::chrono::year{year},
                                         std::chrono::month{static_cast<unsigned>(month)},
                                         std::chrono::day{static_cast<unsigned>(day)}};
  scanner.must(date.ok());
  if (!scanner.good()) return 0;
  return std::chrono::sys_days{date}.time_since_epoch().count();
}

/// Microseconds since midnight.
int64_t scan_time(Scanner& scanner) {
  const int hour = scanner.digits(2);
  scanner.expect(':');
  const int minute = scanner.digits(2);
  int second = 0;
  int64_t fraction = 0;
  if (scanner.next_is(":")) {
    scanner.take();
    second = scanner.digits(2);
    if (scanner.next_is(".,")) {
      scanner.take();
      fraction = scanner.millionths();
    }
  }
  scanner.must(hour < 24 && minute < 60 && second < 60);
  return ((hour * 60 + minute) * 60 + second) * int64_t{1'000'000} + fraction;
}

/// Offset of a time zone from UTC in microseconds.
int64_t scan_zone(Scanner& scanner) {
  const char sign = scanner.take();
  if (sign == 'Z' || sign == 'z') return 0;
  scanner.must(sign == '+' || sign == '-');
  const int hours = scanner.digits(2);
  int minutes = 0;
  if (!scanner.at_end()) {
    if (scanner.next_is(":")) scanner.take();
    minutes = scanner.digits(2);
  }
  scanner.must(hours < 24 && minutes < 60);
  return (sign == '-' ? -1 : 1) * (hours * 60 + minutes) * int64_t{60'000'000};
}

std::optional<Timestamp> parse_integer(std::string_view text) {
  if (text.starts_with('+')) text.remove_prefix(1);
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value > kLargestInteger ||
      value < -kLargestInteger) {
    return std::nullopt;
  }
  return Timestamp{Timestamp::Kind::kInteger, value, value};
}

}  // namespace

std::optional<Timestamp> parse_timestamp(std::string_view text) {
  if (const auto integer = parse_integer(text)) return integer;
  Scanner scanner(text);
  Timestamp time{.kind = Timestamp::Kind::kLocal, .value = 0, .local = 0};
  time.local = scan_date(scanner) * kMicrosecondsPerDay;
  int64_t ahead = 0;
  if (scanner.good() && scanner.next_is("Tt ")) {
    scanner.take();
    time.local += scan_time(scanner);
    if (scanner.good() && !scanner.at_end()) {
      ahead = scan_zone(scanner);
      time.kind = Timestamp::Kind::kZoned;
    }
  }
  if (!scanner.good() || !scanner.at_end()) return std::nullopt;
  time.value = time.local - ahead;
  return time;
}

std::string count_text(int64_t count, const char* unit) {
  return std::to_string(count) + " " + unit + (count == 1 ? "" : "s");
}

std::string duration_text(int64_t microseconds) {
  struct Unit {
    int64_t size;
    const char* name;
  };
  constexpr Unit kUnits[] = {{kMicrosecondsPerDay, "day"},
                             {3'600'000'000, "hour"},
                             {60'000'000, "minute"},
                             {1'000'000, "second"},
                             {1'000, "millisecond"}};
  for (const Unit& unit : kUnits) {
    if (microseconds % unit.size == 0) return count_text(microseconds / unit.size, unit.name);
  }
  return count_text(microseconds, "microsecond");
}

std::string months_text(int64_t months) {
  return months % 12 == 0 ? count_text(months / 12, "year") : count_text(months, "month");
}

}  // namespace flash::models
