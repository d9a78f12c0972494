#include "data/csv_table.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>

#include "data/csv_reader.h"

namespace flash::models {
namespace {

/// The first line of a file.
struct Header {
  std::string path;
  int64_t line;
  std::vector<std::string> names;

  size_t find(const std::string& name) const {
    const auto count = std::count(names.begin(), names.end(), name);
    TORCH_CHECK_VALUE(count == 1, path, ", line ", line, ": expected one column ", name, ", got ",
                      count == 0 ? "none" : std::to_string(count).c_str(),
                      "; the file has the columns ", join(names));
    return static_cast<size_t>(std::find(names.begin(), names.end(), name) - names.begin());
  }
};

Header read_header(const std::string& path, CsvReader& reader) {
  Header header{.path = path, .line = 0, .names = {}};
  TORCH_CHECK_VALUE(reader.next(header.names), path,
                    ": expected a first line with column names, got an empty file");
  for (std::string& name : header.names) name = trim(name);
  header.line = reader.line();
  return header;
}

/// Position of each wanted column in the header.
std::vector<size_t> find_columns(const Header& header, const std::vector<std::string>& wanted) {
  TORCH_CHECK_VALUE(!wanted.empty(), header.path,
                    ": expected at least one column to read, got none");
  std::vector<size_t> positions;
  for (const std::string& name : wanted) {
    TORCH_CHECK_VALUE(std::count(wanted.begin(), wanted.end(), name) == 1, header.path,
                      ": expected each column to be asked for once, got ", name, " twice in ",
                      join(wanted));
    positions.push_back(header.find(name));
  }
  return positions;
}

double parse_number(const std::string& path, int64_t line, const std::string& column,
                    const std::string& field, bool may_be_empty) {
  std::string_view text = trim(field);
  if (text.empty() && may_be_empty) return std::numeric_limits<double>::quiet_NaN();
  if (text.starts_with('+')) text.remove_prefix(1);
  double value = 0.0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  TORCH_CHECK_VALUE(
      error == std::errc() && end == text.data() + text.size() && std::isfinite(value), path,
      ", line ", line, ", column ", column, ": expected a finite number, got \"", field, "\"",
      text.empty() ? "; fill missing values or drop the row first" : "");
  return value;
}

}  // namespace

CsvTable read_csv(const std::string& path, const std::vector<std::string>& columns,
                  const CsvLayout& layout) {
  CsvReader reader(path);
  const Header header = read_header(path, reader);
  const std::vector<size_t> positions = find_columns(header, columns);
  const size_t time = layout.time_column.empty() ? 0 : header.find(layout.time_column);
  const size_t id = layout.id_column.empty() ? 0 : header.find(layout.id_column);
  std::vector<bool> open;
  for (const std::string& name : columns) {
    open.push_back(std::count(layout.open_columns.begin(), layout.open_columns.end(), name) > 0);
  }
  CsvTable table{.columns = columns, .labels = {}, .ids = {}, .values = {}};
  std::vector<std::string> fields;
  std::vector<double> numbers;
  while (reader.next(fields)) {
    TORCH_CHECK_VALUE(fields.size() == header.names.size(), path, ", line ", reader.line(),
                      ": expected ", header.names.size(), " fields as in line ", header.line,
                      ", got ", fields.size());
    for (size_t i = 0; i < positions.size(); ++i) {
      numbers.push_back(
          parse_number(path, reader.line(), columns[i], fields[positions[i]], open[i]));
    }
    table.labels.push_back(fields[time]);
    if (!layout.id_column.empty()) table.ids.push_back(fields[id]);
  }
  TORCH_CHECK_VALUE(!table.labels.empty(), path, ": expected rows of numbers below line ",
                    header.line, ", got none");
  table.values = at::tensor(numbers, at::kDouble)
                     .view({-1, static_cast<int64_t>(columns.size())})
                     .t()
                     .contiguous();
  return table;
}

}  // namespace flash::models
