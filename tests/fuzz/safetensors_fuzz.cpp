// Fuzzes safetensors files. After a first byte 'f' comes a whole file. After any other byte come a
// header, a zero byte and the data, so that the fuzzer need not guess the length of the header.

#include <ATen/core/Tensor.h>
#include <flash_attention/models/safetensors.h>

#include <algorithm>

#include "memory_file.h"
#include "refusal.h"

namespace {

using flash::fuzz::require;

std::string file_with(const std::string& header, const std::string& data) {
  std::string bytes;
  for (int i = 0; i < 8; ++i) bytes += static_cast<char>((header.size() >> (8 * i)) & 0xff);
  return bytes + header + data;
}

std::string file_from(const std::string& input) {
  if (input.empty() || input[0] == 'f') return input.empty() ? input : input.substr(1);
  const size_t end = std::min(input.find('\0', 1), input.size());
  return file_with(input.substr(1, end - 1),
                   end < input.size() ? input.substr(end + 1) : std::string());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string bytes = file_from(std::string(reinterpret_cast<const char*>(data), size));
  const flash::fuzz::MemoryFile file(bytes);
  flash::models::SafetensorsFile read;
  if (!flash::fuzz::accepted([&] { read = flash::models::read_safetensors(file.path()); }))
    return 0;
  // Every byte of the data must belong to exactly one tensor.
  size_t header = 0, stored = 0;
  for (size_t i = 8; i-- > 0;) header = (header << 8) | static_cast<unsigned char>(bytes[i]);
  for (const auto& [name, tensor] : read.tensors) {
    stored += tensor.nbytes();
    require(tensor.is_contiguous(), "contiguous tensors");
  }
  require(8 + header + stored == bytes.size(), "all bytes of the file in tensors");
  return 0;
}
