#include <ATen/ATen.h>
#include <flash_attention/models/safetensors.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>
#include <vector>

#include "atomic_file.h"

namespace flash::models {
namespace {

using Json = nlohmann::json;

constexpr uint64_t kMaxHeaderBytes = 100'000'000;  // the limit of the reference implementation
constexpr uint64_t kLengthBytes = 8;               // a little-endian uint64 before the header

struct DtypeName {
  const char* name;
  at::ScalarType type;
};
constexpr std::array kDtypes{
    DtypeName{"F64", at::kDouble},
    DtypeName{"F32", at::kFloat},
    DtypeName{"F16", at::kHalf},
    DtypeName{"BF16", at::kBFloat16},
    DtypeName{"I64", at::kLong},
    DtypeName{"I32", at::kInt},
    DtypeName{"I16", at::kShort},
    DtypeName{"I8", at::kChar},
    DtypeName{"U64", at::kUInt64},
    DtypeName{"U32", at::kUInt32},
    DtypeName{"U16", at::kUInt16},
    DtypeName{"U8", at::kByte},
    DtypeName{"BOOL", at::kBool},
    DtypeName{"C64", at::kComplexFloat},
    DtypeName{"F8_E4M3", at::kFloat8_e4m3fn},
    DtypeName{"F8_E5M2", at::kFloat8_e5m2},
};

/// Where one tensor lies in the bytes after the header.
struct Entry {
  std::string name;
  at::ScalarType type;
  std::vector<int64_t> shape;
  uint64_t begin;
  uint64_t end;
};

template <class... Parts>
[[noreturn]] void fail(const std::string& path, const Parts&... parts) {
  TORCH_CHECK_VALUE(false, "safetensors file ", path, ": ", parts...);
  std::abort();  // unreachable, but the macro is not known to throw
}

at::ScalarType parse_dtype(const std::string& path, const std::string& tensor, const Json& value) {
  const auto found = std::find_if(kDtypes.begin(), kDtypes.end(), [&](const DtypeName& dtype) {
    return value.is_string() && value.get_ref<const std::string&>() == dtype.name;
  });
  if (found == kDtypes.end()) {
    fail(path, "tensor ", tensor, ": expected a dtype of the format such as \"F32\", got ",
         value.dump());
  }
  return found->type;
}

std::vector<uint64_t> parse_numbers(const std::string& path, const std::string& tensor,
                                    const char* field, const Json& value) {
  std::vector<uint64_t> numbers;
  bool good = value.is_array();
  for (size_t i = 0; good && i < value.size(); ++i) {
    good = value[i].is_number_unsigned() && value[i].get<uint64_t>() <= INT64_MAX;
    if (good) numbers.push_back(value[i].get<uint64_t>());
  }
  if (!good) {
    fail(path, "tensor ", tensor, ": expected ", field, " as a list of whole numbers, got ",
         value.dump());
  }
  return numbers;
}

Entry parse_entry(const std::string& path, const std::string& name, const Json& value) {
  for (const char* field : {"dtype", "shape", "data_offsets"}) {
    if (!value.is_object() || !value.contains(field)) {
      fail(path, "tensor ", name, ": expected the fields dtype, shape and data_offsets, got ",
           value.dump());
    }
  }
  Entry entry{.name = name,
              .type = parse_dtype(path, name, value["dtype"]),
              .shape = {},
              .begin = 0,
              .end = 0};
  const auto offsets = parse_numbers(path, name, "data_offsets", value["data_offsets"]);
  if (offsets.size() != 2 || offsets[0] > offsets[1]) {
    fail(path, "tensor ", name, ": expected data_offsets [begin, end] with begin <= end, got ",
         value["data_offsets"].dump());
  }
  entry.begin = offsets[0];
  entry.end = offsets[1];
  uint64_t bytes = c10::elementSize(entry.type);
  bool overflow = false;
  for (const uint64_t size : parse_numbers(path, name, "shape", value["shape"])) {
    entry.shape.push_back(static_cast<int64_t>(size));
    overflow = overflow || __builtin_mul_overflow(bytes, size, &bytes);
  }
  if (overflow || bytes != entry.end - entry.begin) {
    fail(path, "tensor ", name, ": expected data_offsets that span shape ", value["shape"].dump(),
         " of ", value["dtype"].dump(), ", got ", value["data_offsets"].dump());
  }
  return entry;
}

/// JSON may repeat a key, and the parser would keep the last: two tensors of one name are refused.
Json parse_header(const std::string& path, const std::string& text) {
  std::set<std::string> seen;
  std::string repeated;
  const auto note_keys = [&](int depth, Json::parse_event_t event, Json& parsed) {
    if (event == Json::parse_event_t::key && depth == 1 &&
        !seen.insert(parsed.get<std::string>()).second) {
      repeated = parsed.get<std::string>();
    }
    return true;
  };
  Json header;
  try {
    header = Json::parse(text, note_keys);
  } catch (const Json::exception& error) {
    fail(path, "expected a JSON header, got: ", error.what());
  }
  if (!header.is_object()) fail(path, "expected a JSON object as header, got ", header.type_name());
  if (!repeated.empty()) fail(path, "tensor ", repeated, ": expected one entry, got two");
  return header;
}

Metadata parse_metadata(const std::string& path, const Json& value) {
  if (!value.is_object()) fail(path, "expected __metadata__ as an object, got ", value.dump());
  Metadata metadata;
  for (const auto& [key, text] : value.items()) {
    if (!text.is_string()) {
      fail(path, "__metadata__ ", key, ": expected a string, got ", text.dump());
    }
    metadata[key] = text.get<std::string>();
  }
  return metadata;
}

/// Every byte after the header belongs to exactly one tensor.
void check_coverage(const std::string& path, std::vector<Entry>& entries, uint64_t data_bytes) {
  std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  uint64_t expected = 0;
  for (const Entry& entry : entries) {
    if (entry.end > data_bytes) {
      fail(path, "tensor ", entry.name, ": expected data within ", data_bytes,
           " bytes, got offsets up to ", entry.end, "; the file is cut off or damaged");
    }
    if (entry.begin != expected) {
      fail(path, "tensor ", entry.name, ": expected data from offset ", expected, ", got ",
           entry.begin, "; tensors must not overlap or leave gaps");
    }
    expected = entry.end;
  }
  if (expected != data_bytes) {
    fail(path, "expected ", expected, " bytes of data, got ", data_bytes);
  }
}

std::string read_header(const std::string& path, std::ifstream& stream, uint64_t file_bytes) {
  std::array<unsigned char, kLengthBytes> raw{};
  if (file_bytes < kLengthBytes || !stream.read(reinterpret_cast<char*>(raw.data()), raw.size())) {
    fail(path, "expected at least ", kLengthBytes, " bytes, got ", file_bytes);
  }
  uint64_t length = 0;
  for (size_t i = raw.size(); i-- > 0;) length = (length << 8) | raw[i];
  if (length > kMaxHeaderBytes) {
    fail(path, "expected a header of at most ", kMaxHeaderBytes, " bytes, got ", length,
         "; this is no safetensors file");
  }
  if (length > file_bytes - kLengthBytes) {
    fail(path, "expected a header of ", length, " bytes, got ", file_bytes - kLengthBytes,
         "; the file is cut off or damaged");
  }
  std::string text(length, '\0');
  if (!stream.read(text.data(), static_cast<std::streamsize>(length))) {
    fail(path, "could not read the header");
  }
  return text;
}

const char* dtype_name(const std::string& path, const std::string& tensor, at::ScalarType type) {
  for (const DtypeName& dtype : kDtypes) {
    if (dtype.type == type) return dtype.name;
  }
  fail(path, "tensor ", tensor, ": dtype ", type, " cannot be stored in the format");
}

/// Wide elements first and the header padded to 8 bytes: all data is aligned in memory maps.
std::pair<std::string, std::vector<at::Tensor>> make_header(const std::string& path,
                                                            const TensorMap& tensors,
                                                            const Metadata& metadata) {
  std::vector<std::pair<std::string, at::Tensor>> ordered;
  for (const auto& [name, tensor] : tensors) {
    if (name == "__metadata__" || !tensor.defined() || !tensor.device().is_cpu()) {
      fail(path, "tensor ", name, ": expected a defined CPU tensor under another name");
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
    fail(path, "expected names and metadata in UTF-8: ", error.what());
  }
  text.resize((text.size() + kLengthBytes - 1) / kLengthBytes * kLengthBytes, ' ');
  return {text, data};
}

}  // namespace

SafetensorsFile read_safetensors(const std::string& path) {
  std::error_code error;
  const uint64_t file_bytes = std::filesystem::file_size(path, error);
  std::ifstream stream(path, std::ios::binary);
  if (error || !stream) {
    fail(path, "cannot be read: ", error ? error.message() : std::strerror(errno));
  }
  const std::string text = read_header(path, stream, file_bytes);
  const Json header = parse_header(path, text);
  SafetensorsFile file;
  std::vector<Entry> entries;
  for (const auto& [name, value] : header.items()) {
    if (name == "__metadata__") {
      file.metadata = parse_metadata(path, value);
    } else {
      entries.push_back(parse_entry(path, name, value));
    }
  }
  check_coverage(path, entries, file_bytes - kLengthBytes - text.size());
  for (const Entry& entry : entries) {  // in file order
    at::Tensor tensor = at::empty(entry.shape, at::TensorOptions(entry.type));
    const auto bytes = static_cast<std::streamsize>(entry.end - entry.begin);
    if (bytes > 0 && !stream.read(static_cast<char*>(tensor.mutable_data_ptr()), bytes)) {
      fail(path, "tensor ", entry.name, ": could not read ", bytes, " bytes");
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
