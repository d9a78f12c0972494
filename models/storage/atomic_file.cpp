#include "storage/atomic_file.h"

#include <c10/util/Exception.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <random>

namespace flash::models {
namespace {

namespace fs = std::filesystem;

/// Errors by which file systems report that they cannot sync data to disk.
bool is_unsupported(int error) {
  return error == EINVAL || error == ENOSYS || error == ENOTSUP || error == EROFS;
}

bool is_special(const std::string& path) {
  struct stat existing = {};
  return stat(path.c_str(), &existing) == 0 && !S_ISREG(existing.st_mode) &&
         !S_ISDIR(existing.st_mode);
}

}  // namespace

AtomicFile::AtomicFile(const std::string& path) : path_(path) {
  struct stat existing = {};
  const bool exists = stat(path.c_str(), &existing) == 0;
  if (exists && S_ISDIR(existing.st_mode)) fail(EISDIR);
  if (exists && access(path.c_str(), W_OK) != 0) fail(errno);
  if (is_special(path)) {
    descriptor_ = open(path.c_str(), O_WRONLY | O_CLOEXEC);
  } else {
    std::error_code error;
    const fs::path resolved = fs::weakly_canonical(path, error);
    target_ = error ? path : resolved.string();
    do {
      partial_ = unique_name(target_);
      descriptor_ = open(partial_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    } while (descriptor_ < 0 && errno == EEXIST);
    if (descriptor_ >= 0 && exists) fchmod(descriptor_, existing.st_mode & 07777);
  }
  if (descriptor_ < 0) {
    const int reason = errno;
    partial_.clear();
    fail(reason);
  }
}

AtomicFile::~AtomicFile() {
  if (descriptor_ >= 0) close(descriptor_);
  if (!partial_.empty()) unlink(partial_.c_str());
}

std::string AtomicFile::unique_name(const std::string& path) {
  std::random_device random;  // processes and threads that write the same file must not collide
  const unsigned bits = random();
  std::string name = path + ".";
  for (int shift = 0; shift < 30; shift += 5) {
    name += "0123456789abcdefghijklmnopqrstuv"[(bits >> shift) & 31];
  }
  return name + ".partial";
}

void AtomicFile::check(const std::string& path) {
  if (is_special(path)) {
    // Opening a pipe waits for its reader, and closing it ends the reader's input.
    TORCH_CHECK_VALUE(access(path.c_str(), W_OK) == 0, path,
                      ": cannot be written: ", std::strerror(errno));
  } else {
    AtomicFile file(path);
  }
}

void AtomicFile::fail(int error) const {
  TORCH_CHECK_VALUE(false, path_, ": cannot be written: ", std::strerror(error));
  std::abort();  // unreachable, but the macro is not known to throw
}

void AtomicFile::write(const void* bytes, size_t count) {
  const auto* next = static_cast<const char*>(bytes);
  while (count > 0) {
    const ssize_t written = ::write(descriptor_, next, count);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) fail(errno);
    next += written;
    count -= static_cast<size_t>(written);
  }
}

void AtomicFile::commit() {
  if (!partial_.empty() && fsync(descriptor_) != 0 && !is_unsupported(errno)) fail(errno);
  const int closed = close(descriptor_);
  descriptor_ = -1;
  if (closed != 0 && errno != EINTR) fail(errno);
  if (partial_.empty()) return;
  if (rename(partial_.c_str(), target_.c_str()) != 0) fail(errno);
  partial_.clear();
  sync_folder();
}

/// The new name must survive a loss of power, too. The file is complete whether this succeeds or
/// not.
void AtomicFile::sync_folder() const {
  const std::string folder = fs::path(target_).parent_path().string();
  const int descriptor =
      open(folder.empty() ? "." : folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) return;
  fsync(descriptor);
  close(descriptor);
}

}  // namespace flash::models
