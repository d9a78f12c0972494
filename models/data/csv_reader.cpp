#include "data/csv_reader.h"

#include <c10/util/Exception.h>

#include <cerrno>
#include <cstring>
#include <filesystem>

namespace flash::models {

std::string_view trim(std::string_view text) {
  constexpr std::string_view kBlank = " \t\r";
  const size_t first = text.find_first_not_of(kBlank);
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(kBlank) - first + 1);
}

std::string join(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

std::string quoted(const std::string& field) {
  // Blanks at the ends would go with those of the line.
  const bool plain = field.find_first_of(",\"\n") == std::string::npos && trim(field) == field;
  if (plain) return field;
  std::string text = "\"";
  for (const char c : field) text += c == '"' ? std::string("\"\"") : std::string(1, c);
  return text + "\"";
}

CsvReader::CsvReader(const std::string& path) : path_(path), stream_(path) {
  TORCH_CHECK_VALUE(stream_ && !std::filesystem::is_directory(path), path,
                    ": expected a CSV file, but it cannot be read: ",
                    std::filesystem::is_directory(path) ? "is a directory" : std::strerror(errno));
}

bool CsvReader::next(std::vector<std::string>& fields) {
  std::string line;
  while (std::getline(stream_, line)) {
    ++line_;
    if (line_ == 1 && line.starts_with("\xEF\xBB\xBF")) line.erase(0, 3);  // byte-order mark
    if (trim(line).empty()) continue;
    split(trim(line), fields);
    return true;
  }
  TORCH_CHECK_VALUE(stream_.eof(), path_, ", line ", line_ + 1, ": reading failed");
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
