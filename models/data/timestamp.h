#pragma once
// Timestamps in tables.

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace flash::models {

struct Timestamp {
  /// An integer (a year, an hour, seconds since 1970), a date without and one with a time zone.
  enum class Kind : uint8_t { kInteger, kLocal, kZoned };

  Kind kind;
  /// The integer, or microseconds since 1970-01-01 00:00, in UTC if there is a zone.
  int64_t value;
  /// The same in local time, in which days and months are counted.
  int64_t local;
};

/// The formats of parse_timestamp, for messages.
inline constexpr const char* kTimestampForms =
    "a date such as 2012-01-31, a date and time such as 2012-01-31 18:30:00, or an integer";

/// ISO 8601: `2012-01-31`, `2012/01/31` or `2012-01`, alone or followed by `T` or a blank and
/// `18:30`, `18:30:00` or `18:30:00.125`, with or without `Z`, `+01:00`, `+0100` or `+01`; or an
/// integer within +-2^62. Fractions have microsecond resolution. nullopt for any other text.
std::optional<Timestamp> parse_timestamp(std::string_view text);

inline constexpr int64_t kMicrosecondsPerDay = 86'400'000'000;

/// A duration as `1 day`, `15 minutes` or `250 milliseconds`.
std::string duration_text(int64_t microseconds);

/// A number of months as `1 month`, `3 months` or `1 year`.
std::string months_text(int64_t months);

/// A count with its unit, in the plural unless it is 1.
std::string count_text(int64_t count, const char* unit);

}  // namespace flash::models
