#pragma once
// The input bytes of one run as a file, since the parsers read files.

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <string>

namespace flash::fuzz {

class MemoryFile {
 public:
  MemoryFile(const uint8_t* data, size_t size) : descriptor_(memfd_create("input", 0)) {
    for (size_t done = 0; done < size;) {
      const ssize_t written = write(descriptor_, data + done, size - done);
      if (written <= 0) std::abort();
      done += static_cast<size_t>(written);
    }
  }
  explicit MemoryFile(const std::string& bytes)
      : MemoryFile(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()) {}
  ~MemoryFile() { close(descriptor_); }
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;

  std::string path() const { return "/proc/self/fd/" + std::to_string(descriptor_); }

 private:
  int descriptor_;
};

}  // namespace flash::fuzz
