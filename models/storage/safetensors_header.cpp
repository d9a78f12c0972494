#include "storage/safetensors_header.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <utility>

#include "message_text.h"
#include "storage/json_text.h"

namespace flash::models {
namespace {

using Json = nlohmann::json;
using Entry = SafetensorsEntry;

constexpr size_t kMaxDimensions = 64;  // NumPy's limit, and that of torch's bit sets of dimensions

struct DtypeName {
  const char* name;
  c10::ScalarType type;
};
constexpr std::array kDtypes{
    DtypeName{"F64", c10::ScalarType::Double},
    DtypeName{"F32", c10::ScalarType::Float},
    DtypeName{"F16", c10::ScalarType::Half},
    DtypeName{"BF16", c10::ScalarType::BFloat16},
    DtypeName{"I64", c10::ScalarType::Long},
    DtypeName{"I32", c10::ScalarType::Int},
    DtypeName{"I16", c10::ScalarType::Short},
    DtypeName{"I8", c10::ScalarType::Char},
    DtypeName{"U64", c10::ScalarType::UInt64},
    DtypeName{"U32", c10::ScalarType::UInt32},
    DtypeName{"U16", c10::ScalarType::UInt16},
    DtypeName{"U8", c10::ScalarType::Byte},
    DtypeName{"BOOL", c10::ScalarType::Bool},
    DtypeName{"C64", c10::ScalarType::ComplexFloat},
    DtypeName{"F8_E4M3", c10::ScalarType::Float8_e4m3fn},
    DtypeName{"F8_E5M2", c10::ScalarType::Float8_e5m2},
};

template <class... Parts>
[[noreturn]] void fail_at(const std::string& path, const std::string& tensor,
                          const Parts&... parts) {
  fail_file(path, "tensor ", excerpt(tensor), ": ", parts...);
}

c10::ScalarType parse_dtype(const std::string& path, const std::string& tensor, const Json& value) {
  const auto found = std::find_if(kDtypes.begin(), kDtypes.end(), [&](const DtypeName& dtype) {
    return value.is_string() && value.get_ref<const std::string&>() == dtype.name;
  });
  if (found == kDtypes.end()) {
    fail_at(path, tensor, "expected a dtype of the format such as \"F32\", got ",
            json_excerpt(value));
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
    fail_at(path, tensor, "expected ", field, " as a list of whole numbers, got ",
            json_excerpt(value));
  }
  return numbers;
}

Entry parse_entry(const std::string& path, const std::string& name, const Json& value) {
  for (const char* field : {"dtype", "shape", "data_offsets"}) {
    if (!value.is_object() || !value.contains(field)) {
      fail_at(path, name, "expected the fields dtype, shape and data_offsets, got ",
              json_excerpt(value));
    }
  }
  const Json &shape = value["shape"], &data_offsets = value["data_offsets"];
  Entry entry{.name = name,
              .type = parse_dtype(path, name, value["dtype"]),
              .shape = {},
              .begin = 0,
              .end = 0};
  const auto offsets = parse_numbers(path, name, "data_offsets", data_offsets);
  if (offsets.size() != 2 || offsets[0] > offsets[1]) {
    fail_at(path, name, "expected data_offsets [begin, end] with begin <= end, got ",
            json_excerpt(data_offsets));
  }
  entry.begin = offsets[0];
  entry.end = offsets[1];
  const auto sizes = parse_numbers(path, name, "shape", shape);
  if (sizes.size() > kMaxDimensions) {
    fail_at(path, name, "expected at most ", kMaxDimensions, " dimensions, got ", sizes.size());
  }
  // Strides are products of the sizes other than 0, so these must fit even if the tensor is empty.
  int64_t bytes = static_cast<int64_t>(c10::elementSize(entry.type));
  bool overflow = false, empty = false;
  for (const uint64_t size : sizes) {
    entry.shape.push_back(static_cast<int64_t>(size));
    if (size == 0) {
      empty = true;
    } else {
      overflow = overflow || __builtin_mul_overflow(bytes, entry.shape.back(), &bytes);
    }
  }
  if (overflow || (empty ? 0 : static_cast<uint64_t>(bytes)) != entry.end - entry.begin) {
    fail_at(path, name, "expected data_offsets that span shape ", json_excerpt(shape), " of ",
            json_excerpt(value["dtype"]), ", got ", json_excerpt(data_offsets));
  }
  return entry;
}

std::map<std::string, std::string> parse_metadata(const std::string& path, const Json& value) {
  if (!value.is_object())
    fail_file(path, "expected __metadata__ as an object, got ", json_excerpt(value));
  std::map<std::string, std::string> metadata;
  for (const auto& [key, text] : value.items()) {
    if (!text.is_string()) {
      fail_file(path, "__metadata__ ", excerpt(key), ": expected a string, got ",
                json_excerpt(text));
    }
    metadata[key] = text.get<std::string>();
  }
  return metadata;
}

/// Every byte after the header belongs to exactly one tensor. Sorts the entries.
void check_coverage(const std::string& path, std::vector<Entry>& entries, uint64_t data_bytes) {
  std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  uint64_t expected = 0;
  for (const Entry& entry : entries) {
    if (entry.end > data_bytes) {
      fail_at(path, entry.name, "expected data within ", data_bytes, " bytes, got offsets up to ",
              entry.end, "; the file is truncated or damaged");
    }
    if (entry.begin != expected) {
      fail_at(path, entry.name, "expected data from offset ", expected, ", got ", entry.begin,
              "; tensors must not overlap or leave gaps");
    }
    expected = entry.end;
  }
  if (expected != data_bytes) {
    fail_file(path, "expected ", expected, " bytes of data, got ", data_bytes);
  }
}

}  // namespace

SafetensorsHeader parse_safetensors_header(const std::string& path, std::string_view text,
                                           uint64_t data_bytes) {
  const Json json =
      parse_json_object(text, "safetensors file " + path + ": expected a JSON object as header");
  SafetensorsHeader header;
  for (const auto& [name, value] : json.items()) {
    if (name == "__metadata__") {
      header.metadata = parse_metadata(path, value);
    } else {
      header.entries.push_back(parse_entry(path, name, value));
    }
  }
  check_coverage(path, header.entries, data_bytes);
  return header;
}

const char* safetensors_dtype_name(c10::ScalarType type) {
  const auto found = std::find_if(kDtypes.begin(), kDtypes.end(),
                                  [&](const DtypeName& dtype) { return dtype.type == type; });
  return found == kDtypes.end() ? nullptr : found->name;
}

}  // namespace flash::models
