#pragma once
// The header of a safetensors file: JSON that locates each tensor in the bytes after it.

#include <c10/core/ScalarType.h>
#include <c10/util/Exception.h>

#include <cstdint>
#include <cstdlib>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace flash::models {

struct SafetensorsEntry {
  std::string name;
  c10::ScalarType type;
  std::vector<int64_t> shape;  ///< the product of its sizes other than 0 fits int64_t
  uint64_t begin, end;         ///< bytes after the header
};

struct SafetensorsHeader {
  std::vector<SafetensorsEntry> entries;  ///< in the order of the file
  std::map<std::string, std::string> metadata;
};

/// Throws c10::ValueError for the file at `path`.
template <class... Parts>
[[noreturn]] void fail_file(const std::string& path, const Parts&... parts) {
  TORCH_CHECK_VALUE(false, "safetensors file ", path, ": ", parts...);
  std::abort();  // unreachable, but the macro is not known to throw
}

/// Parses the header `text`, after which the file has `data_bytes` bytes.
///
/// Throws c10::ValueError, beginning with "safetensors file <path>: ", if `text` violates the
/// format or if the entries do not cover each of these bytes exactly once.
SafetensorsHeader parse_safetensors_header(const std::string& path, std::string_view text,
                                           uint64_t data_bytes);

/// The format's name of a dtype; nullptr if it has none.
const char* safetensors_dtype_name(c10::ScalarType type);

}  // namespace flash::models
