#pragma once
// Strict numbers on the command line. CLI11 itself clamps overflows to the largest number, reads
// 010 as 8 and -1 as 2^64 - 1, and considers NaN to be within any range.

#include <CLI/CLI.hpp>
#include <cstdint>
#include <limits>

namespace flash::models {

/// Normalises a whole number, for CLI::Option::transform.
CLI::Validator whole_number(int64_t least, int64_t most = std::numeric_limits<int64_t>::max());

/// The same for 0 to 2^64 - 1.
CLI::Validator unsigned_number();

/// Checks for a finite number, a number above 0, and one within [least, most].
CLI::Validator real_number();
CLI::Validator positive_number();
CLI::Validator real_number(double least, double most);

}  // namespace flash::models
