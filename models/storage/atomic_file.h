#pragma once
// Files that appear under their name only once they are complete.

#include <flash_attention/export.h>

#include <cstddef>
#include <string>
#include <string_view>

namespace flash::models {

/// Writes to a file of another name in the same folder, which commit() puts in the place of `path`:
/// after that the new contents are on disk, before it whatever was there. A link stays a link, to
/// the new file. What is no regular file (a pipe, /dev/null) is written to directly.
///
/// All functions throw c10::ValueError naming `path` and the reason.
class FLASH_API AtomicFile {
 public:
  explicit AtomicFile(const std::string& path);
  /// Removes what was not committed.
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  /// A name beside `path` that no file has.
  static std::string unique_name(const std::string& path);

  /// Whether a file could be made at `path` now: makes none.
  static void check(const std::string& path);

  void write(const void* bytes, size_t count);
  void write(std::string_view text) { write(text.data(), text.size()); }

  /// Once, at the end.
  void commit();

 private:
  [[noreturn]] void fail(int error) const;
  void sync_folder() const;

  std::string path_;     // as given, for messages
  std::string target_;   // where links lead to
  std::string partial_;  // the other name; empty for what is written to directly, or committed
  int descriptor_ = -1;
};

}  // namespace flash::models
