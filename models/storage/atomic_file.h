#pragma once
// Atomic replacement of files: a file gets its name only when it is complete.

#include <flash_attention/export.h>

#include <cstddef>
#include <string>
#include <string_view>

namespace flash::models {

/// Writes to a temporary file in the same folder. commit() syncs it to disk and renames it to
/// `path`; until then the old contents stay. If `path` is a symbolic link, the file that it points
/// to is replaced. Anything but a regular file (a pipe, /dev/null) is written to directly.
///
/// All functions throw c10::ValueError naming `path` and the reason.
class FLASH_API AtomicFile {
 public:
  explicit AtomicFile(const std::string& path);
  /// Removes the temporary file if it was not committed.
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  /// An unused name in the folder of `path`.
  static std::string unique_name(const std::string& path);

  /// Checks whether a file can be created at `path`, without creating one.
  static void check(const std::string& path);

  void write(const void* bytes, size_t count);
  void write(std::string_view text) { write(text.data(), text.size()); }

  /// Must be called once, at the end.
  void commit();

 private:
  [[noreturn]] void fail(int error) const;
  void sync_folder() const;

  std::string path_;     // as given, for messages
  std::string target_;   // `path` with symbolic links resolved
  std::string partial_;  // the temporary file; empty if written to directly or committed
  int descriptor_ = -1;
};

}  // namespace flash::models
