#pragma once
// A model's options as JSON, under neuralforecast's names.

#include <nlohmann/json.hpp>
#include <set>
#include <string>

#include "option_visitor.h"

namespace flash::models {

/// Options as they are given to `context`, which begins the message of c10::ValueError where they
/// are no JSON object.
nlohmann::json parse_options(const std::string& text, const std::string& context);

/// Fills the options that are given and leaves the others at their defaults.
///
/// Throws c10::ValueError, beginning with `context`, where a value is of another type than the
/// option or a number beyond 2^32 in magnitude, and where one without a default (h, input_size,
/// n_series) is not given.
class JsonOptionReader : public OptionVisitor {
 public:
  enum class Missing { kTakeDefault, kRefuse };

  /// `given`, an object of `parse_options`, must outlive the reader. With `kRefuse` nothing but
  /// lists of names may be missing.
  JsonOptionReader(std::string context, const nlohmann::json& given,
                   Missing missing = Missing::kTakeDefault);

  void visit(const char* name, int64_t& value) override;
  void visit(const char* name, double& value) override;
  void visit(const char* name, bool& value) override;
  void visit(const char* name, std::string& value) override;
  void visit(const char* name, std::vector<std::string>& value) override;
  void visit_ours(const char* name, std::map<std::string, std::vector<int64_t>>& value) override;

  const std::string& context() const { return context_; }
  /// The names of the options visited so far.
  const std::set<std::string>& known() const { return known_; }
  /// Throws c10::ValueError if something is given that is no option.
  void refuse_unknown() const;

 private:
  const nlohmann::json* find(const char* name);
  const nlohmann::json* find_scalar(const char* name);
  [[noreturn]] void refuse(const char* name, const char* expected, const nlohmann::json& got) const;

  std::string context_;
  const nlohmann::json& given_;
  Missing missing_;
  std::set<std::string> known_;
};

/// Writes each option into an object. `ours` receives those that neuralforecast lacks.
class JsonOptionWriter : public OptionVisitor {
 public:
  void visit(const char* name, int64_t& value) override { options[name] = value; }
  void visit(const char* name, double& value) override { options[name] = value; }
  void visit(const char* name, bool& value) override { options[name] = value; }
  void visit(const char* name, std::string& value) override { options[name] = value; }
  void visit(const char* name, std::vector<std::string>& value) override;
  void visit_ours(const char* name, std::map<std::string, std::vector<int64_t>>& value) override;

  nlohmann::json options = nlohmann::json::object();
  nlohmann::json ours = nlohmann::json::object();
};

}  // namespace flash::models
