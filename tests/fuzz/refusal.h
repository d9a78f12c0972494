#pragma once
// What a parser may do with what it does not take: throw c10::ValueError with a message that Python
// can show.

#include <c10/util/Exception.h>

#include <cstdio>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <string>

namespace flash::fuzz {

/// Ends the process, so that the fuzzer keeps the input.
inline void require(bool good, const char* what) {
  if (good) return;
  std::fprintf(stderr, "fuzzing: expected %s\n", what);
  std::abort();
}

/// Whether `call` returned; any exception but c10::ValueError ends the process.
template <class Call>
bool accepted(const Call& call) {
  try {
    call();
    return true;
  } catch (const c10::ValueError& error) {
    const std::string message = error.what_without_backtrace();
    require(message.size() < 4000, "a message of a few lines");
    require(message.find('\0') == std::string::npos, "a message without zero bytes");
    nlohmann::json(message).dump();  // throws where it is no UTF-8
    return false;
  }
}

}  // namespace flash::fuzz
