#pragma once
// Handmade safetensors files.

#include <cstddef>
#include <string>

namespace flash::tests {

/// The bytes of a file with this header, preceded by its length, and `data_bytes` bytes of data.
inline std::string safetensors_bytes(const std::string& header, size_t data_bytes = 0) {
  std::string bytes;
  for (int i = 0; i < 8; ++i) bytes += static_cast<char>((header.size() >> (8 * i)) & 0xff);
  return bytes + header + std::string(data_bytes, '\1');
}

}  // namespace flash::tests
