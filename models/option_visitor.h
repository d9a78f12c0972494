#pragma once
// The list of a model's options, from which they are read, written, checked and printed.

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace flash::models {

struct AutoformerOptions;
struct FEDformerOptions;
struct InformerOptions;
struct ITransformerOptions;
struct PatchTSTOptions;
struct TFTOptions;

class OptionVisitor {
 public:
  virtual ~OptionVisitor() = default;
  virtual void visit(const char* name, int64_t& value) = 0;
  virtual void visit(const char* name, double& value) = 0;
  virtual void visit(const char* name, bool& value) = 0;
  virtual void visit(const char* name, std::string& value) = 0;
  virtual void visit(const char* name, std::vector<std::string>& value) = 0;  ///< [] for None
  /// A size: at least 1, and small enough that products of two sizes fit int64_t.
  virtual void visit_size(const char* name, int64_t& value) { visit(name, value); }
  /// In [0, 1].
  virtual void visit_probability(const char* name, double& value) { visit(name, value); }
  /// An option that neuralforecast lacks; empty if not given.
  virtual void visit_extension(const char* name,
                               std::map<std::string, std::vector<int64_t>>& value) = 0;
};

// Defined in the model's source file. Visits every option that the model shares with
// neuralforecast's constructor, in the order of that constructor's signature.
void visit_options(AutoformerOptions& options, OptionVisitor& visitor);
void visit_options(FEDformerOptions& options, OptionVisitor& visitor);
void visit_options(InformerOptions& options, OptionVisitor& visitor);
void visit_options(ITransformerOptions& options, OptionVisitor& visitor);
void visit_options(PatchTSTOptions& options, OptionVisitor& visitor);
void visit_options(TFTOptions& options, OptionVisitor& visitor);

}  // namespace flash::models
