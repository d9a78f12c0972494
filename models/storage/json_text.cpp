#include "storage/json_text.h"

#include <c10/util/Exception.h>

#include <set>
#include <vector>

#include "message_text.h"

namespace flash::models {
namespace {

using Json = nlohmann::json;

// Files of this project nest 5 levels. Values within this limit can be written, copied and compared
// by recursion.
constexpr size_t kMaxDepth = 64;

/// Checks the text before anything is built from it. (The parser's own callback could do this, but
/// takes quadratic time in the number of objects.)
class Inspector final : public Json::json_sax_t {
 public:
  /// The error, to follow "expected ... as a JSON object"; empty if there is none.
  std::string problem;

  bool null() override { return true; }
  bool boolean(bool) override { return true; }
  bool number_integer(number_integer_t) override { return true; }
  bool number_unsigned(number_unsigned_t) override { return true; }
  bool number_float(number_float_t, const string_t&) override { return true; }
  bool string(string_t&) override { return true; }
  bool binary(binary_t&) override { return true; }

  bool start_object(size_t) override { return open(); }
  bool start_array(size_t) override { return open(); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }

  bool key(string_t& name) override {
    if (keys_.back().insert(name).second) return true;
    problem = " without duplicate keys, got \"" + excerpt(name) + "\" twice";
    return false;
  }

  bool parse_error(size_t position, const std::string&, const Json::exception&) override {
    at_ = position;
    return false;
  }

  /// The byte, from 1, at which the text is not JSON; 0 if it is.
  size_t position() const { return at_; }

 private:
  bool open() {
    if (keys_.size() == kMaxDepth) {
      problem = " nested at most " + std::to_string(kMaxDepth) + " deep, got more";
      return false;
    }
    keys_.emplace_back();
    return true;
  }

  bool close() {
    keys_.pop_back();
    return true;
  }

  std::vector<std::set<std::string>> keys_;  // of each open object; empty for an array
  size_t at_ = 0;
};

}  // namespace

Json parse_json_object(std::string_view text, const std::string& expected) {
  Inspector inspector;
  const bool sound = Json::sax_parse(text, &inspector);
  TORCH_CHECK_VALUE(inspector.problem.empty(), expected, inspector.problem);
  TORCH_CHECK_VALUE(sound, expected, ", got \"", excerpt(text), "\", which is not JSON at byte ",
                    inspector.position());
  Json parsed = Json::parse(text);
  TORCH_CHECK_VALUE(parsed.is_object(), expected, ", got ", json_excerpt(parsed));
  return parsed;
}

std::string json_excerpt(const Json& value) {
  return shortened(value.dump(-1, ' ', false, Json::error_handler_t::replace));
}

}  // namespace flash::models
