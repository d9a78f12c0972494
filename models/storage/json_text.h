#pragma once
// Parsing of untrusted JSON. All JSON comes from users and files, and passes through here.

#include <flash_attention/export.h>

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace flash::models {

/// Parses `text` as a JSON object. `expected` begins the messages, as in "TFT: expected the options
/// as a JSON object".
///
/// Throws c10::ValueError, quoting the beginning of `text`, if it is not a JSON object, is not
/// UTF-8, is nested more than 64 levels, or has a duplicate key. Takes time and memory linear in
/// the length of `text`.
FLASH_API nlohmann::json parse_json_object(std::string_view text, const std::string& expected);

/// The beginning of `value` as text, for messages. It recurses into nested values, so `value` must
/// come from `parse_json_object`.
FLASH_API std::string json_excerpt(const nlohmann::json& value);

}  // namespace flash::models
