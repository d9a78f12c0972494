#include "data/csv_table.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>
#include <optional>

#include "data/csv_reader.h"

namespace flash::models {
namespace {

constexpr const char* kConvert = "; convert the file, for example by iconv -f LATIN1 -t UTF-8";

/// The first line of a file.
struct Header {
  std::string path;
  int64_t line;
  std::vector<std::string> names;

  size_t find(const std::string& name) const {
    const auto count = std::count(names.begin(), names.end(), name);
    TORCH_CHECK_VALUE(count == 1, path, ", line ", line, ": expected one column ", printable(name),
                      ", got ", count == 0 ? "none" : std::to_string(count).c_str(),
                      "; the file has the columns ", join(names));
    TORCH_CHECK_VALUE(is_utf8(name), path, ", line ", line,
                      ": expected names of columns in UTF-8, got ", printable(name), kConvert);
    return static_cast<size_t>(std::find(names.begin(), names.end(), name) - names.begin());
  }
};

/// A field of a file, for messages.
struct Place {
  const Header& header;
  int64_t line;
  size_t column;
};

std::ostream& operator<<(std::ostream& stream, const Place& place) {
  return stream << place.header.path << ", line " << place.line << ", column "
                << shown_column(place.header.names[place.column]);
}

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
                      ": expected each column to be requested once, got ", printable(name),
                      " twice in ", join(wanted));
    positions.push_back(header.find(name));
  }
  return positions;
}

double parse_number(const Place& place, const std::string& field, bool may_be_empty) {
  std::string_view text = trim(field);
  if (text.empty() && may_be_empty) return std::numeric_limits<double>::quiet_NaN();
  if (text.starts_with('+')) text.remove_prefix(1);
  double value = 0.0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  TORCH_CHECK_VALUE(
      error == std::errc() && end == text.data() + text.size() && std::isfinite(value), place,
      ": expected a finite number, got \"", printable(field), "\"",
      text.empty() ? "; fill missing values or drop the row first" : "");
  return value;
}

/// Finds the time column, see read_csv; `used` are the columns with another use.
size_t find_time_column(const Header& header, const std::string& name,
                        const std::vector<size_t>& used, const std::vector<std::string>& row,
                        int64_t line) {
  if (!name.empty()) return header.find(name);
  constexpr const char* kAdvice =
      "; name the column of times by --time-column, or give --no-time-column where the rows are in "
      "order of time and no column says so";
  std::vector<size_t> unused;
  for (size_t i = 0; i < header.names.size(); ++i) {
    if (std::find(used.begin(), used.end(), i) == used.end()) unused.push_back(i);
  }
  TORCH_CHECK_VALUE(!unused.empty(), header.path,
                    ": expected a column of times, got none beside the columns in use, ",
                    join(header.names), kAdvice);
  for (const size_t i : unused) {
    const auto time = parse_timestamp(trim(row[i]));
    if (time && time->kind != Timestamp::Kind::kInteger) return i;
  }
  TORCH_CHECK_VALUE(parse_timestamp(trim(row[unused[0]])), (Place{header, line, unused[0]}),
                    ": expected ", kTimestampForms, ", got \"", printable(row[unused[0]]), "\"",
                    kAdvice);
  return unused[0];
}

void add_time(CsvTimes& rows, const std::string& field, const Place& place) {
  const auto time = parse_timestamp(trim(field));
  TORCH_CHECK_VALUE(time, place, ": expected ", kTimestampForms, ", got \"", printable(field),
                    "\"");
  TORCH_CHECK_VALUE(rows.times.empty() || rows.times[0].kind == time->kind, place,
                    ": expected times of one kind, got \"", printable(field), "\" and, in line ",
                    rows.lines[0], ", \"", printable(rows.labels[0]), "\"");
  rows.times.push_back(*time);
  rows.labels.emplace_back(trim(field));
}

std::string parse_id(const std::string& field, const Place& place) {
  std::string id(trim(field));
  TORCH_CHECK_VALUE(!id.empty(), place, ": expected the name of a series, got an empty field");
  TORCH_CHECK_VALUE(is_utf8(id), place, ": expected text in UTF-8, got \"", printable(id), "\"",
                    kConvert);
  return id;
}

}  // namespace

CsvTable read_csv(const std::string& path, const std::vector<std::string>& columns,
                  const CsvLayout& layout) {
  CsvReader reader(path);
  const Header header = read_header(path, reader);
  const std::vector<size_t> positions = find_columns(header, columns);
  std::vector<size_t> used = positions;
  size_t id = 0;
  if (!layout.id_column.empty()) used.push_back(id = header.find(layout.id_column));
  std::vector<bool> open;
  for (const std::string& name : columns) {
    open.push_back(std::count(layout.open_columns.begin(), layout.open_columns.end(), name) > 0);
  }
  CsvTable table{.columns = columns, .rows = {}, .ids = {}, .values = {}};
  std::optional<size_t> time;
  std::vector<std::string> fields;
  std::vector<double> numbers;
  while (reader.next(fields)) {
    const int64_t line = reader.line();
    TORCH_CHECK_VALUE(fields.size() == header.names.size(), path, ", line ", line, ": expected ",
                      header.names.size(), " fields as in line ", header.line, ", got ",
                      fields.size());
    const auto place = [&](size_t column) { return Place{header, line, column}; };
    for (size_t i = 0; i < positions.size(); ++i) {
      numbers.push_back(parse_number(place(positions[i]), fields[positions[i]], open[i]));
    }
    if (layout.timed) {
      if (!time) time = find_time_column(header, layout.time_column, used, fields, line);
      add_time(table.rows, fields[*time], place(*time));
    }
    table.rows.lines.push_back(line);
    if (!layout.id_column.empty()) {
      table.ids.push_back(parse_id(fields[id], place(id)));
    }
  }
  TORCH_CHECK_VALUE(!table.rows.lines.empty(), path, ": expected rows of numbers below line ",
                    header.line, ", got none");
  if (time) table.rows.column = header.names[*time];
  table.values = at::from_blob(numbers.data(),
                               {static_cast<int64_t>(table.rows.lines.size()),
                                static_cast<int64_t>(columns.size())},
                               at::kDouble)
                     .t()
                     .clone(at::MemoryFormat::Contiguous);  // the vector of numbers ends here
  return table;
}

}  // namespace flash::models
