#pragma once
// The one way in which text becomes JSON: all of it comes from users and files.

#include <flash_attention/export.h>

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace flash::models {

/// The JSON object that `text` is. `expected` begins the messages, as in "TFT: expected the options
/// as a JSON object".
///
/// Throws c10::ValueError, quoting the beginning of `text`, if it is none, is not UTF-8, is nested
/// more than 64 deep, or has a key twice in one object. Takes time and memory in proportion to
/// `text`.
FLASH_API nlohmann::json parse_json_object(std::string_view text, const std::string& expected);

/// The beginning of `value` as text, for messages. For what `parse_json_object` gave: it recurses
/// into nested values.
FLASH_API std::string json_excerpt(const nlohmann::json& value);

}  // namespace flash::models
