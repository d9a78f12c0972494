#include "message_text.h"

#include <nlohmann/json.hpp>

namespace flash::models {
namespace {

constexpr size_t kShownBytes = 200;

/// `text` up to `kShownBytes`, without a character that the cut splits.
std::string_view beginning(std::string_view text) {
  if (text.size() <= kShownBytes) return text;
  const auto continues = [&](size_t i) {
    return (static_cast<unsigned char>(text[i]) & 0xc0U) == 0x80U;
  };
  size_t end = kShownBytes;
  while (end > kShownBytes - 4 && continues(end)) --end;  // a character has at most 4 bytes
  return text.substr(0, end);
}

}  // namespace

std::string excerpt(std::string_view text) {
  const std::string_view kept = beginning(text);
  const std::string quoted =
      nlohmann::json(kept).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  return quoted.substr(1, quoted.size() - 2) + (kept.size() < text.size() ? "..." : "");
}

std::string shortened(std::string text) {
  const size_t kept = beginning(text).size();
  if (kept < text.size()) text.replace(kept, std::string::npos, "...");
  return text;
}

std::string lower_case(std::string text) {
  for (char& c : text) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  }
  return text;
}

}  // namespace flash::models
