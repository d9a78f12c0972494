#pragma once
// One list of a model's options, for reading them from JSON and for writing them.

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
  /// An option that neuralforecast lacks; empty where it was not given.
  virtual void visit_ours(const char* name, std::map<std::string, std::vector<int64_t>>& value) = 0;
};

// Each in the source file of its model: every option that neuralforecast's constructor stores and
// the model has, in the order of its signature.
void visit_options(AutoformerOptions& options, OptionVisitor& visitor);
void visit_options(FEDformerOptions& options, OptionVisitor& visitor);
void visit_options(InformerOptions& options, OptionVisitor& visitor);
void visit_options(ITransformerOptions& options, OptionVisitor& visitor);
void visit_options(PatchTSTOptions& options, OptionVisitor& visitor);
void visit_options(TFTOptions& options, OptionVisitor& visitor);

}  // namespace flash::models
