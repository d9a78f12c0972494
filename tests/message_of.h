#pragma once
// What a call that has to fail says.

#include <c10/util/Exception.h>

#include <string>

namespace flash::tests {

/// The text of the `Error` that `call` throws, or a text that says it threw none.
template <class Error, class Call>
std::string message_of(Call&& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what_without_backtrace();
  }
  return "no exception";
}

}  // namespace flash::tests
