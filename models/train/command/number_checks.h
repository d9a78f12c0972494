#pragma once
// Numbers on the command line: CLI11 takes what overflows for the largest number, 010 for 8, -1 for
// 2^64 - 1 and NaN for a number within any range.

#include <CLI/CLI.hpp>
#include <cstdint>
#include <limits>

namespace flash::models {

/// Transforms a whole number to its usual form, for CLI::Option::transform.
CLI::Validator whole_number(int64_t least, int64_t most = std::numeric_limits<int64_t>::max());

/// The same for 0 to 2^64 - 1.
CLI::Validator unsigned_number();

/// Any finite number, one above 0, or one within [least, most].
CLI::Validator real_number();
CLI::Validator positive_number();
CLI::Validator real_number(double least, double most);

}  // namespace flash::models
