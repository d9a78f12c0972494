#pragma once
// A model's options as JSON, under neuralforecast's names.

#include <nlohmann/json.hpp>
#include <set>
#include <string>

#include "option_visitor.h"

namespace flash::models {

/// Parses options. Throws c10::ValueError, beginning with `context`, if `text` is not a JSON
/// object.
nlohmann::json parse_options(const std::string& text, const std::string& context);

/// Sets the options that are given and leaves the others at their defaults.
///
/// Throws c10::ValueError, beginning with `context`, if a value has the wrong type or is an integer
/// beyond 2^32 in magnitude, or if an option without a default (h, input_size, n_series) is
/// missing.
class JsonOptionReader : public OptionVisitor {
 public:
  enum class Missing { kTakeDefault, kRefuse };

  /// `given`, from `parse_options`, must outlive the reader. With `kRefuse` only lists of names may
  /// be missing.
  JsonOptionReader(std::string context, const nlohmann::json& given,
                   Missing missing = Missing::kTakeDefault);

  void visit(const char* name, int64_t& value) override;
  void visit(const char* name, double& value) override;
  void visit(const char* name, bool& value) override;
  void visit(const char* name, std::string& value) override;
  void visit(const char* name, std::vector<std::string>& value) override;
  void visit_extension(const char* name,
                       std::map<std::string, std::vector<int64_t>>& value) override;

  const std::string& context() const { return context_; }
  /// The names of the options visited so far.
  const std::set<std::string>& known() const { return known_; }
  /// Throws c10::ValueError if `given` contains anything that is not an option.
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

/// Writes each option into `options`, or into `ours` if neuralforecast lacks it.
class JsonOptionWriter : public OptionVisitor {
 public:
  void visit(const char* name, int64_t& value) override { options[name] = value; }
  void visit(const char* name, double& value) override { options[name] = value; }
  void visit(const char* name, bool& value) override { options[name] = value; }
  void visit(const char* name, std::string& value) override { options[name] = value; }
  void visit(const char* name, std::vector<std::string>& value) override;
  void visit_extension(const char* name,
                       std::map<std::string, std::vector<int64_t>>& value) override;

  nlohmann::json options = nlohmann::json::object();
  nlohmann::json ours = nlohmann::json::object();
};

}  // namespace flash::models
