// Fuzzes the CSV reader and the reader of panels.

#include <ATen/core/Tensor.h>

#include "data/csv_reader.h"
#include "data/panel.h"
#include "memory_file.h"
#include "refusal.h"

namespace {

using flash::fuzz::accepted;
using flash::fuzz::MemoryFile;
using flash::fuzz::require;
using flash::models::CsvReader;
using Lines = std::vector<std::vector<std::string>>;

Lines read_lines(const std::string& path) {
  CsvReader reader(path);
  Lines lines;
  for (std::vector<std::string> fields; reader.next(fields);) {
    // A single empty field is written as an empty line, which the reader skips.
    if (fields != std::vector<std::string>{""}) lines.push_back(fields);
  }
  return lines;
}

/// Writing and reading the lines again must give the same lines.
void check_round_trip(const Lines& lines) {
  std::string text = "first line\n";  // keeps a byte-order mark in a field from being stripped
  for (const auto& fields : lines) {
    for (size_t i = 0; i < fields.size(); ++i) {
      if (i > 0) text += ',';
      text += flash::models::quoted(fields[i]);
    }
    text += '\n';
  }
  const MemoryFile file(text);
  Lines again = read_lines(file.path());
  require(!again.empty(), "the first line");
  again.erase(again.begin());
  require(again == lines, "the same fields after writing them");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const MemoryFile file(data, size);
  Lines lines;
  if (!accepted([&] { lines = read_lines(file.path()); })) return 0;
  check_round_trip(lines);
  if (lines.empty()) return 0;
  // The last column is the target; further columns are exogenous, and the first is the id.
  const std::vector<std::string>& names = lines.front();
  const auto name = [&](size_t i) { return std::string(flash::models::trim(names[i])); };
  flash::models::PanelColumns columns{.targets = {name(names.size() - 1)}};
  accepted([&] { flash::models::read_panel(file.path(), columns); });
  if (names.size() > 2) columns.futr_exog = {name(names.size() - 2)};
  accepted([&] { flash::models::read_open_panel(file.path(), columns, 2); });
  if (names.size() > 3) columns.stat_exog = {name(names.size() - 3)};
  columns.id_column = name(0);
  accepted([&] { flash::models::read_panel(file.path(), columns); });
  return 0;
}
