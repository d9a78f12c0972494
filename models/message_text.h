#pragma once
// What a user or a file gave, as error messages quote it.

#include <flash_attention/export.h>

#include <string>
#include <string_view>

namespace flash::models {

/// The first 200 bytes of `text`, with "..." where there are more. Escaped as in a JSON string, so
/// that a message is one line of valid UTF-8, which is what Python takes, whatever a file holds.
FLASH_API std::string excerpt(std::string_view text);

/// `text`, which is valid UTF-8, cut as `excerpt` cuts it, and not escaped.
FLASH_API std::string shortened(std::string text);

}  // namespace flash::models
