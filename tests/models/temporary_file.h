#pragma once
// A file that exists as long as its object.

#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>

namespace flash::tests {

class TemporaryFile {
 public:
  explicit TemporaryFile(const std::string& ending, const std::string& contents = "") {
    static int count = 0;
    path_ =
        std::filesystem::temp_directory_path() /
        ("flash_models_test_" + std::to_string(getpid()) + "_" + std::to_string(count++) + ending);
    if (!contents.empty()) std::ofstream(path_, std::ios::binary) << contents;
  }
  ~TemporaryFile() {
    std::error_code ignored;
    std::filesystem::remove(path_, ignored);
  }
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;

  std::string path() const { return path_.string(); }

 private:
  std::filesystem::path path_;
};

}  // namespace flash::tests
