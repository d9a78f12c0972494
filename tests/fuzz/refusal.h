#pragma once
// Checks how a parser refuses input: with c10::ValueError and a message that Python can show.

#include <c10/util/Exception.h>

#include <cstdio>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <string>

namespace flash::fuzz {

/// Aborts unless `condition` holds, so that the fuzzer saves the input.
inline void require(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "fuzzing: expected %s\n", what);
  std::abort();
}

/// Whether `call` returned; any exception other than c10::ValueError ends the process.
template <class Call>
bool accepted(const Call& call) {
  try {
    call();
    return true;
  } catch (const c10::ValueError& error) {
    const std::string message = error.what_without_backtrace();
    require(message.size() < 4000, "a message of a few lines");
    require(message.find('\0') == std::string::npos, "a message without zero bytes");
    nlohmann::json(message).dump();  // throws unless it is UTF-8
    return false;
  }
}

}  // namespace flash::fuzz
