#include "storage/json_options.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <limits>
#include <string_view>
#include <utility>

#include "message_text.h"
#include "storage/json_text.h"

namespace flash::models {
namespace {

using Json = nlohmann::json;

constexpr std::array<std::string_view, 3> kWithoutDefault{"h", "input_size", "n_series"};

// No size or seed is larger. Products of two sizes (below 2^31) fit int64_t, and products of a size
// and a factor are compared as doubles.
constexpr int64_t kMostWhole = int64_t{1} << 32;

bool fits_int64(const Json& value) {
  if (!value.is_number_integer()) return false;
  return !value.is_number_unsigned() ||
         value.get<uint64_t>() <= static_cast<uint64_t>(std::numeric_limits<int64_t>::max());
}

template <class Test>
bool is_list(const Json& value, Test&& test) {
  return value.is_array() && std::all_of(value.begin(), value.end(), test);
}

}  // namespace

Json parse_options(const std::string& text, const std::string& context) {
  return parse_json_object(text, context + ": expected the options as a JSON object");
}

JsonOptionReader::JsonOptionReader(std::string context, const Json& given, Missing missing)
    : context_(std::move(context)), given_(given), missing_(missing) {}

const Json* JsonOptionReader::find(const char* name) {
  known_.insert(name);
  const auto found = given_.find(name);
  return found != given_.end() ? &*found : nullptr;
}

const Json* JsonOptionReader::find_scalar(const char* name) {
  const Json* found = find(name);
  const bool has_default =
      std::find(kWithoutDefault.begin(), kWithoutDefault.end(), name) == kWithoutDefault.end();
  TORCH_CHECK_VALUE(found != nullptr || (has_default && missing_ == Missing::kTakeDefault),
                    context_, ": expected option ", name,
                    has_default ? "" : ", which has no default", ", got none");
  return found;
}

void JsonOptionReader::refuse(const char* name, const char* expected, const Json& got) const {
  TORCH_CHECK_VALUE(false, context_, ": expected option ", name, " as ", expected, ", got ",
                    json_excerpt(got));
  std::abort();  // unreachable, but the macro is not known to throw
}

void JsonOptionReader::visit(const char* name, int64_t& value) {
  const Json* given = find_scalar(name);
  if (given == nullptr) return;
  if (!fits_int64(*given)) refuse(name, "a whole number", *given);
  value = given->get<int64_t>();
  if (value < -kMostWhole || value > kMostWhole) {
    refuse(name, "a whole number of at most 2^32", *given);
  }
}

void JsonOptionReader::visit(const char* name, double& value) {
  const Json* given = find_scalar(name);
  if (given == nullptr) return;
  if (!given->is_number()) refuse(name, "a number", *given);
  value = given->get<double>();
}

void JsonOptionReader::visit(const char* name, bool& value) {
  const Json* given = find_scalar(name);
  if (given == nullptr) return;
  if (!given->is_boolean()) refuse(name, "true or false", *given);
  value = given->get<bool>();
}

void JsonOptionReader::visit(const char* name, std::string& value) {
  const Json* given = find_scalar(name);
  if (given == nullptr) return;
  if (!given->is_string()) refuse(name, "a string", *given);
  value = given->get<std::string>();
}

void JsonOptionReader::visit(const char* name, std::vector<std::string>& value) {
  const Json* given = find(name);
  if (given == nullptr) return;
  if (given->is_null()) {
    value.clear();
    return;
  }
  if (!is_list(*given, [](const Json& item) { return item.is_string(); })) {
    refuse(name, "a list of names", *given);
  }
  value = given->get<std::vector<std::string>>();
}

void JsonOptionReader::visit_extension(const char* name,
                                       std::map<std::string, std::vector<int64_t>>& value) {
  const Json* given = find(name);
  if (given == nullptr || given->is_null()) return;
  bool good = given->is_object();
  if (good) {
    for (const auto& [key, list] : given->items()) good = good && is_list(list, fits_int64);
  }
  if (!good) refuse(name, "an object of lists of whole numbers", *given);
  value = given->get<std::map<std::string, std::vector<int64_t>>>();
}

void JsonOptionReader::refuse_unknown() const {
  for (const auto& [name, value] : given_.items()) {
    if (known_.contains(name)) continue;
    std::string names;
    for (const std::string& option : known_) names += (names.empty() ? "" : ", ") + option;
    TORCH_CHECK_VALUE(false, context_, ": expected options among ", names, ", got ", excerpt(name));
  }
}

void JsonOptionWriter::visit(const char* name, std::vector<std::string>& value) {
  // neuralforecast uses None for no columns, and rejects [] for some lists.
  options[name] = value.empty() ? Json(nullptr) : Json(value);
}

void JsonOptionWriter::visit_extension(const char* name,
                                       std::map<std::string, std::vector<int64_t>>& value) {
  if (!value.empty()) ours[name] = value;
}

}  // namespace flash::models
