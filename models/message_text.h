#pragma once
// Text from users and files, as error messages quote it.

#include <flash_attention/export.h>

#include <string>
#include <string_view>

namespace flash::models {

/// The first 200 bytes of `text`, followed by "..." if it is longer, escaped as in a JSON string: a
/// message must be one line of valid UTF-8, which Python requires, whatever a file contains.
FLASH_API std::string excerpt(std::string_view text);

/// Like `excerpt`, but not escaped. `text` must be valid UTF-8.
FLASH_API std::string shortened(std::string text);

/// `text` with the letters A to Z in lower case.
std::string lower_case(std::string text);

}  // namespace flash::models
