#pragma once
// The fields of a comma-separated file, line by line.

#include <cstdint>
#include <fstream>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace flash::models {

/// Text without blanks at its ends.
std::string_view trim(std::string_view text);

/// Names with commas between them, for messages: the first thirty, and how many more there are.
std::string join(const std::vector<std::string>& names);

/// A field as a comma-separated file has it: in quotes where it needs them.
std::string quoted(const std::string& field);

/// A text from a file for a message: cut after 60 bytes, with bytes that are no printable ASCII or
/// UTF-8 as \x1B.
std::string shown(std::string_view text);

/// The same for the name of a column, which may be empty.
std::string shown_column(const std::string& name);

/// Whether JSON can hold it.
bool is_utf8(const std::string& text);

/// Reads a file and knows where it is. Fields may be quoted; empty lines are passed over. Throws
/// c10::ValueError naming the file, and the line where it is one line's fault: an open quote, or
/// more than 16 MiB.
class CsvReader {
 public:
  explicit CsvReader(const std::string& path);

  /// The fields of the next line that is not empty; false at the end of the file.
  bool next(std::vector<std::string>& fields);

  /// Number of the line last read, from 1.
  int64_t line() const { return line_; }

 private:
  void split(std::string_view line, std::vector<std::string>& fields) const;

  std::string path_;
  std::ifstream stream_;
  std::unique_ptr<char[]> buffer_;
  int64_t line_ = 0;
};

}  // namespace flash::models
