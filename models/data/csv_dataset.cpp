#include "data/csv_dataset.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string_view>

namespace flash::models {
namespace {

std::string_view trim(std::string_view text) {
  constexpr std::string_view kBlank = " \t\r";
  const size_t first = text.find_first_not_of(kBlank);
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(kBlank) - first + 1);
}

/// Reads a file line by line and knows where it is.
class CsvReader {
 public:
  explicit CsvReader(const std::string& path) : path_(path), stream_(path) {
    TORCH_CHECK_VALUE(
        stream_ && !std::filesystem::is_directory(path), path,
        ": expected a CSV file, but it cannot be read: ",
        std::filesystem::is_directory(path) ? "is a directory" : std::strerror(errno));
  }

  /// The fields of the next line that is not empty; false at the end of the file.
  bool next(std::vector<std::string>& fields) {
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

  int64_t line() const { return line_; }

 private:
  void split(std::string_view line, std::vector<std::string>& fields) const {
    fields.assign(1, "");
    bool quoted = false;
    for (size_t i = 0; i < line.size(); ++i) {
      const char c = line[i];
      if (quoted && c == '"' && i + 1 < line.size() && line[i + 1] == '"') {
        fields.back() += line[++i];  // "" inside quotes is one quote
      } else if (c == '"') {
        quoted = !quoted;
      } else if (c == ',' && !quoted) {
        fields.emplace_back();
      } else {
        fields.back() += c;
      }
    }
    TORCH_CHECK_VALUE(!quoted, path_, ", line ", line_,
                      ": expected a closing quote before the end of the line");
  }

  std::string path_;
  std::ifstream stream_;
  int64_t line_ = 0;
};

std::string join(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

/// Position of each wanted column in the header.
std::vector<size_t> find_columns(const std::string& path, int64_t line,
                                 const std::vector<std::string>& header,
                                 const std::vector<std::string>& wanted) {
  TORCH_CHECK_VALUE(!wanted.empty(), path, ": expected at least one column to read, got none");
  std::vector<size_t> positions;
  for (const std::string& name : wanted) {
    TORCH_CHECK_VALUE(std::count(wanted.begin(), wanted.end(), name) == 1, path,
                      ": expected each column to be asked for once, got ", name, " twice in ",
                      join(wanted));
    const auto count = std::count(header.begin(), header.end(), name);
    TORCH_CHECK_VALUE(count == 1, path, ", line ", line, ": expected one column ", name, ", got ",
                      count == 0 ? "none" : std::to_string(count).c_str(),
                      "; the file has the columns ", join(header));
    positions.push_back(
        static_cast<size_t>(std::find(header.begin(), header.end(), name) - header.begin()));
  }
  return positions;
}

double parse_number(const std::string& path, int64_t line, const std::string& column,
                    const std::string& field) {
  std::string_view text = trim(field);
  if (text.starts_with('+')) text.remove_prefix(1);
  double value = 0.0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  TORCH_CHECK_VALUE(
      error == std::errc() && end == text.data() + text.size() && std::isfinite(value), path,
      ", line ", line, ", column ", column, ": expected a finite number, got \"", field, "\"",
      text.empty() ? "; fill missing values or drop the row first" : "");
  return value;
}

void check_part(const char* name, int64_t rows, int64_t needed, int64_t total) {
  TORCH_CHECK_VALUE(rows >= needed, "expected at least ", needed, " rows in the ", name,
                    " part, got ", rows, " of ", total,
                    "; use a longer table, or a shorter input size or horizon");
}

}  // namespace

CsvTable read_csv(const std::string& path, const std::vector<std::string>& columns) {
  CsvReader reader(path);
  std::vector<std::string> fields;
  TORCH_CHECK_VALUE(reader.next(fields), path,
                    ": expected a first line with column names, got an empty file");
  for (std::string& name : fields) name = trim(name);
  const size_t width = fields.size();
  const int64_t header_line = reader.line();
  const std::vector<size_t> positions = find_columns(path, reader.line(), fields, columns);
  CsvTable table{.columns = columns, .labels = {}, .values = {}};
  std::vector<double> numbers;
  while (reader.next(fields)) {
    TORCH_CHECK_VALUE(fields.size() == width, path, ", line ", reader.line(), ": expected ", width,
                      " fields as in line ", header_line, ", got ", fields.size());
    for (size_t i = 0; i < positions.size(); ++i) {
      numbers.push_back(parse_number(path, reader.line(), columns[i], fields[positions[i]]));
    }
    table.labels.push_back(fields.front());
  }
  TORCH_CHECK_VALUE(!table.labels.empty(), path, ": expected rows of numbers below line ",
                    header_line, ", got none");
  table.values = at::tensor(numbers, at::kDouble)
                     .view({-1, static_cast<int64_t>(columns.size())})
                     .t()
                     .contiguous();
  return table;
}

TimeSplit split_by_time(int64_t rows, double train_fraction, double validation_fraction,
                        int64_t input_size, int64_t horizon) {
  TORCH_CHECK_VALUE(
      train_fraction > 0.0 && validation_fraction > 0.0 &&
          train_fraction + validation_fraction < 1.0,
      "expected positive training and validation fractions that leave a test part, got ",
      train_fraction, " and ", validation_fraction);
  const auto train = static_cast<int64_t>(static_cast<double>(rows) * train_fraction);
  const auto validation = static_cast<int64_t>(static_cast<double>(rows) * validation_fraction);
  check_part("training", train, input_size + horizon, rows);
  check_part("validation", validation, horizon, rows);
  check_part("test", rows - train - validation, horizon, rows);
  return {.train = {0, train},
          .validation = {train, train + validation},
          .test = {train + validation, rows}};
}

WindowDataset::WindowDataset(const at::Tensor& values, RowRange future_rows, bool past_inside,
                             int64_t input_size, int64_t horizon)
    : first_start_(past_inside ? future_rows.begin : future_rows.begin - input_size),
      input_size_(input_size) {
  windows_ = values.slice(1, first_start_, future_rows.end).unfold(1, input_size + horizon, 1);
}

int64_t WindowDataset::first_future_row(int64_t index) const {
  return first_start_ + index / columns() + input_size_;
}

WindowBatch WindowDataset::batch(const at::Tensor& indices) const {
  const at::Tensor starts = indices.div(columns(), "floor");
  const at::Tensor rows = windows_.index({indices.remainder(columns()), starts});
  return {.past = rows.slice(1, 0, input_size_).unsqueeze(2), .future = rows.slice(1, input_size_)};
}

}  // namespace flash::models
