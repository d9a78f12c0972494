#pragma once
// Reading the fields of a comma-separated file line by line.

#include <cstdint>
#include <fstream>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace flash::models {

/// `text` without blanks at its ends.
std::string_view trim(std::string_view text);

/// Names separated by commas, for messages: the first thirty, and how many more there are.
std::string join(const std::vector<std::string>& names);

/// A field for a comma-separated file, quoted if necessary.
std::string quoted(const std::string& field);

/// Text from a file, for messages: truncated to 60 bytes, with bytes that are neither printable
/// ASCII nor UTF-8 written as \x1B.
std::string printable(std::string_view text);

/// The same for the name of a column, which may be empty.
std::string shown_column(const std::string& name);

/// Whether `text` is valid UTF-8, which JSON requires.
bool is_utf8(const std::string& text);

/// Reads a file line by line. Fields may be quoted; empty lines are skipped. Throws c10::ValueError
/// naming the file, and the line if its quote is not closed or if it has more than 16 MiB.
class CsvReader {
 public:
  explicit CsvReader(const std::string& path);

  /// Reads the fields of the next line that is not empty; false at the end of the file.
  bool next(std::vector<std::string>& fields);

  /// Number of the last line read, from 1.
  int64_t line() const { return line_; }

 private:
  void split(std::string_view line, std::vector<std::string>& fields) const;

  std::string path_;
  std::ifstream stream_;
  std::unique_ptr<char[]> buffer_;
  int64_t line_ = 0;
};

}  // namespace flash::models
