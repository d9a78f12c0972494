#include "train/command/number_checks.h"

#include <charconv>
#include <sstream>
#include <string>
#include <type_traits>

namespace flash::models {
namespace {

/// An error message unless `text` is a number between `least` and `most`.
template <class Number>
std::string check(std::string& text, const char* kind, Number least, Number most) {
  const bool plus = text.starts_with('+') && !text.starts_with("+-");
  Number number{};
  const auto [end, error] = std::from_chars(text.data() + plus, text.data() + text.size(), number);
  const bool is_number = error == std::errc() && end == text.data() + text.size();
  if (is_number && number >= least && number <= most) {  // false for NaN
    if constexpr (std::is_integral_v<Number>) text = std::to_string(number);
    return "";
  }
  std::ostringstream message;
  message.precision(std::numeric_limits<double>::digits10);
  message << "expected " << kind;
  if (most < std::numeric_limits<Number>::max()) {
    message << " from " << least << " to " << most;
  } else if (least > std::numeric_limits<Number>::lowest()) {
    message << " of at least " << least;
  }
  message << ", got " << text;
  if (error == std::errc::result_out_of_range) message << ", which is too large";
  return message.str();
}

template <class Number>
CLI::Validator make(const char* kind, Number least, Number most) {
  return CLI::Validator([=](std::string& text) { return check<Number>(text, kind, least, most); },
                        "");
}

}  // namespace

CLI::Validator whole_number(int64_t least, int64_t most) {
  return make<int64_t>("a whole number", least, most);
}

CLI::Validator unsigned_number() {
  return make<uint64_t>("a whole number", 0, std::numeric_limits<uint64_t>::max());
}

CLI::Validator real_number() {
  return real_number(std::numeric_limits<double>::lowest(), std::numeric_limits<double>::max());
}

CLI::Validator positive_number() {
  return CLI::Validator(
      [](std::string& text) {
        constexpr auto kLimits = std::numeric_limits<double>();
        const bool good = check<double>(text, "", kLimits.min(), kLimits.max()).empty();
        return good ? "" : "expected a finite number above 0, got " + text;
      },
      "");
}

CLI::Validator real_number(double least, double most) {
  return make<double>("a finite number", least, most);
}

}  // namespace flash::models
