#include <ATen/ATen.h>
#include <flash_attention/models/safetensors.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "available_memory.h"
#include "message_text.h"
#include "storage/atomic_file.h"
#include "storage/safetensors_header.h"

namespace flash::models {
namespace {

using Json = nlohmann::json;

constexpr uint64_t kMaxHeaderBytes = 100'000'000;  // the limit of the reference implementation
constexpr uint64_t kLengthBytes = 8;               // a little-endian uint64 before the header

/// A sparse file can claim gigabytes that are not on the disk.
void check_memory(const std::string& path, uint64_t data_bytes) {
  const double available = available_memory();
  if (static_cast<double>(data_bytes) > available) {
    fail_file(path, "expected at most ", in_gigabytes(available),
              ", which this machine has available, got tensors of ",
              in_gigabytes(static_cast<double>(data_bytes)));
  }
}

std::string read_header(const std::string& path, std::ifstream& stream, uint64_t file_bytes) {
  std::array<unsigned char, kLengthBytes> raw{};
  if (file_bytes < kLengthBytes || !stream.read(reinterpret_cast<char*>(raw.data()), raw.size())) {
    fail_file(path, "expected at least ", kLengthBytes, " bytes, got ", file_bytes);
  }
  uint64_t length = 0;
  for (size_t i = raw.size(); i-- > 0;) length = (length << 8) | raw[i];
  if (length > kMaxHeaderBytes) {
    fail_file(path, "expected a header of at most ", kMaxHeaderBytes, " bytes, got ", length,
              "; this is not a safetensors file");
  }
  if (length > file_bytes - kLengthBytes) {
    fail_file(path, "expected a header of ", length, " bytes, got ", file_bytes - kLengthBytes,
              "; the file is truncated or damaged");
  }
  std::string text(length, '\0');
  if (!stream.read(text.data(), static_cast<std::streamsize>(length))) {
    fail_file(path, "could not read the header");
  }
  return text;
}

const char* dtype_name(const std::string& path, const std::string& tensor, at::ScalarType type) {
  const char* name = safetensors_dtype_name(type);
  if (name == nullptr)
    fail_file(path, "tensor ", tensor, ": dtype ", type, " cannot be stored in the format");
  return name;
}

/// Tensors with large elements first and the header padded to 8 bytes, so that all data is aligned
/// in memory maps.
std::pair<std::string, std::vector<at::Tensor>> make_header(const std::string& path,
                                                            const TensorMap& tensors,
                                                            const Metadata& metadata) {
  std::vector<std::pair<std::string, at::Tensor>> ordered;
  for (const auto& [name, tensor] : tensors) {
    if (name == "__metadata__" || !tensor.defined() || !tensor.device().is_cpu()) {
      fail_file(path, "tensor ", name, ": expected a defined CPU tensor under another name");
    }
    ordered.emplace_back(name, tensor.detach().contiguous().resolve_conj().resolve_neg());
  }
  std::stable_sort(ordered.begin(), ordered.end(), [](const auto& a, const auto& b) {
    return a.second.element_size() > b.second.element_size();
  });
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  std::vector<at::Tensor> data;
  uint64_t offset = 0;
  for (const auto& [name, tensor] : ordered) {
    const uint64_t end = offset + tensor.nbytes();
    header[name] = {{"dtype", dtype_name(path, name, tensor.scalar_type())},
                    {"shape", tensor.sizes().vec()},
                    {"data_offsets", {offset, end}}};
    offset = end;
    data.push_back(tensor);
  }
  std::string text;
  try {
    text = header.dump();
  } catch (const Json::exception& error) {
    fail_file(path, "expected names and metadata in UTF-8: ", error.what());
  }
  text.resize((text.size() + kLengthBytes - 1) / kLengthBytes * kLengthBytes, ' ');
  return {text, data};
}

}  // namespace

SafetensorsFile read_safetensors(const std::string& path) {
  std::error_code error;
  const uint64_t file_bytes = std::filesystem::file_size(path, error);  // of a regular file only
  if (error) fail_file(path, "cannot be read: ", error.message());
  std::ifstream stream(path, std::ios::binary);
  if (!stream) fail_file(path, "cannot be read: ", std::strerror(errno));
  const std::string text = read_header(path, stream, file_bytes);
  const uint64_t data_bytes = file_bytes - kLengthBytes - text.size();
  SafetensorsHeader header = parse_safetensors_header(path, text, data_bytes);
  check_memory(path, data_bytes);
  SafetensorsFile file{.tensors = {}, .metadata = std::move(header.metadata)};
  for (const SafetensorsEntry& entry : header.entries) {
    at::Tensor tensor = at::empty(entry.shape, at::TensorOptions(entry.type));
    const auto bytes = static_cast<std::streamsize>(entry.end - entry.begin);
    if (bytes > 0 && !stream.read(static_cast<char*>(tensor.mutable_data_ptr()), bytes)) {
      fail_file(path, "tensor ", excerpt(entry.name), ": could not read ", bytes, " bytes");
    }
    file.tensors.emplace(entry.name, tensor);
  }
  return file;
}

void write_safetensors(const std::string& path, const TensorMap& tensors,
                       const Metadata& metadata) {
  const auto [header, data] = make_header(path, tensors, metadata);
  AtomicFile file(path);
  std::array<char, kLengthBytes> length{};
  for (size_t i = 0; i < length.size(); ++i) {
    length[i] = static_cast<char>((header.size() >> (8 * i)) & 0xff);
  }
  file.write(length.data(), length.size());
  file.write(header);
  for (const at::Tensor& tensor : data) file.write(tensor.const_data_ptr(), tensor.nbytes());
  file.commit();
}

}  // namespace flash::models
