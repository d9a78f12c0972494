#include "data/csv_reader.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>

namespace flash::models {
namespace {

// Far more than a table needs. Without a limit, a file without line breaks would fill the memory.
constexpr std::streamsize kLongestLine = 16 << 20;

}  // namespace

std::string_view trim(std::string_view text) {
  constexpr std::string_view kBlank = " \t\r";
  const size_t first = text.find_first_not_of(kBlank);
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(kBlank) - first + 1);
}

std::string join(const std::vector<std::string>& names) {
  constexpr size_t kShown = 30;
  std::string text;
  for (size_t i = 0; i < std::min(names.size(), kShown); ++i) {
    text += (i == 0 ? "" : ", ") + printable(names[i]);
  }
  if (names.size() > kShown) text += " and " + std::to_string(names.size() - kShown) + " more";
  return text;
}

std::string quoted(const std::string& field) {
  // Blanks at the ends would be stripped with those of the line.
  const bool plain = field.find_first_of(",\"\n\r") == std::string::npos && trim(field) == field;
  if (plain) return field;
  std::string text = "\"";
  for (const char c : field) text += c == '"' ? std::string("\"\"") : std::string(1, c);
  return text + "\"";
}

bool is_utf8(const std::string& text) {
  try {
    nlohmann::json(text).dump();
  } catch (const nlohmann::json::exception&) {
    return false;
  }
  return true;
}

std::string printable(std::string_view text) {
  constexpr size_t kShown = 60;
  size_t length = std::min(text.size(), kShown);
  // Not inside a multi-byte character.
  while (length > 0 && length < text.size() && (text[length] & 0xC0) == 0x80) --length;
  const std::string start(text.substr(0, length));
  const bool readable = is_utf8(start);
  std::string result;
  for (const char c : start) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte >= 0x20 && byte != 0x7F && (byte < 0x80 || readable)) {
      result += c;
    } else {
      char code[8];
      std::snprintf(code, sizeof(code), "\\x%02X", byte);
      result += code;
    }
  }
  return length < text.size() ? result + "..." : result;
}

std::string shown_column(const std::string& name) {
  return name.empty() ? "without a name" : printable(name);
}

CsvReader::CsvReader(const std::string& path)
    : path_(path), stream_(path), buffer_(new char[kLongestLine]) {
  TORCH_CHECK_VALUE(stream_ && !std::filesystem::is_directory(path), path,
                    ": expected a CSV file, but it cannot be read: ",
                    std::filesystem::is_directory(path) ? "is a directory" : std::strerror(errno));
}

bool CsvReader::next(std::vector<std::string>& fields) {
  while (stream_.getline(buffer_.get(), kLongestLine) || stream_.gcount() > 0) {
    ++line_;
    TORCH_CHECK_VALUE(stream_ || stream_.eof(), path_, ", line ", line_,
                      ": expected a line of less than ", kLongestLine,
                      " bytes, got a longer one; this is not a CSV file");
    // A line break is part of a quoted field; the end of the file is an error.
    const std::streamsize length = stream_.gcount() - (stream_.eof() ? 0 : 1);
    std::string_view line(buffer_.get(), static_cast<size_t>(length));
    if (line_ == 1 && line.starts_with("\xEF\xBB\xBF")) line.remove_prefix(3);  // byte-order mark
    if (trim(line).empty()) continue;
    split(trim(line), fields);
    return true;
  }
  TORCH_CHECK_VALUE(stream_.eof() && !stream_.bad(), path_, ", line ", line_ + 1,
                    ": reading failed");
  return false;
}

void CsvReader::split(std::string_view line, std::vector<std::string>& fields) const {
  fields.assign(1, "");
  bool inside_quotes = false;
  for (size_t i = 0; i < line.size(); ++i) {
    const char c = line[i];
    if (inside_quotes && c == '"' && i + 1 < line.size() && line[i + 1] == '"') {
      fields.back() += line[++i];  // "" inside quotes is one quote
    } else if (c == '"') {
      inside_quotes = !inside_quotes;
    } else if (c == ',' && !inside_quotes) {
      fields.emplace_back();
    } else {
      fields.back() += c;
    }
  }
  TORCH_CHECK_VALUE(!inside_quotes, path_, ", line ", line_,
                    ": expected a closing quote before the end of the line");
}

}  // namespace flash::models
