// Writing and reading fields of a CSV file.

#include <gtest/gtest.h>

#include "data/csv_reader.h"
#include "models/temporary_file.h"

namespace flash::tests {
namespace {

TEST(CsvQuoting, RoundTripsEveryField) {
  const std::vector<std::vector<std::string>> lines = {
      {"plain", "a,b", "\"quoted\"", "", "\""},
      {" blank first", "in between", "blank last "},
      {"\ttab", "carriage return\r"},
      {"a", " "},
      {" "}};
  std::string text;
  for (const auto& fields : lines) {
    for (size_t i = 0; i < fields.size(); ++i) {
      if (i > 0) text += ',';
      text += models::quoted(fields[i]);
    }
    text += '\n';
  }
  const TemporaryFile file(".csv", text);
  models::CsvReader reader(file.path());
  std::vector<std::string> fields;
  for (const auto& expected : lines) {
    ASSERT_TRUE(reader.next(fields));
    EXPECT_EQ(fields, expected);
  }
  EXPECT_FALSE(reader.next(fields));
}

}  // namespace
}  // namespace flash::tests
