#include <flash_attention/models/autoformer.h>
#include <flash_attention/models/fedformer.h>
#include <flash_attention/models/forecast_model_base.h>
#include <flash_attention/models/informer.h>
#include <flash_attention/models/itransformer.h>
#include <flash_attention/models/patchtst.h>
#include <flash_attention/models/tft.h>
#include <torch/torch.h>

#include <utility>

#include "checks.h"
#include "freed_memory.h"
#include "option_visitor.h"

namespace flash::models {
namespace {

class RangeChecker : public OptionVisitor {
 public:
  explicit RangeChecker(const Checks& check) : check_(check) {}

  void visit(const char*, int64_t&) override {}
  void visit(const char*, double&) override {}
  void visit(const char*, bool&) override {}
  void visit(const char*, std::string&) override {}
  void visit(const char*, std::vector<std::string>&) override {}
  void visit_size(const char* name, int64_t& value) override { check_.size(name, value); }
  void visit_probability(const char* name, double& value) override {
    check_.probability(name, value);
  }
  void visit_extension(const char*, std::map<std::string, std::vector<int64_t>>&) override {}

 private:
  const Checks& check_;
};

class OptionPrinter : public OptionVisitor {
 public:
  explicit OptionPrinter(std::ostream& stream) : stream_(stream) {}

  void visit(const char* name, int64_t& value) override { begin(name) << value; }
  void visit(const char* name, double& value) override { begin(name) << value; }
  void visit(const char* name, bool& value) override { begin(name) << (value ? "true" : "false"); }
  void visit(const char* name, std::string& value) override { begin(name) << value; }
  void visit(const char* name, std::vector<std::string>& value) override {
    begin(name) << value.size();
  }
  void visit_extension(const char*, std::map<std::string, std::vector<int64_t>>&) override {}

 private:
  std::ostream& begin(const char* name) {
    if (std::exchange(has_previous_, true)) stream_ << ", ";
    return stream_ << name << "=";
  }

  std::ostream& stream_;
  bool has_previous_ = false;
};

/// "native", "standard" or "flash".
template <class Options>
std::string attention_name(const Options& options) {
  if (options.use_flash_attention()) return "flash";
  if constexpr (requires { options.attention(); }) return options.attention();
  return "standard";
}

}  // namespace

template <class Derived, class ModelOptions>
ForecastModelBase<Derived, ModelOptions>::ForecastModelBase(ModelOptions options_)
    : options(std::move(options_)) {
  const Checks check(Options::kModelClass);
  RangeChecker ranges(check);
  models::visit_options(options, ranges);
  check.size("outputsize_multiplier", options.outputsize_multiplier());
  check.positive("flash_block_size", options.flash_block_size());
  keep_freed_memory();
}

template <class Derived, class ModelOptions>
std::string ForecastModelBase<Derived, ModelOptions>::model_class() const {
  return Options::kModelClass;
}

template <class Derived, class ModelOptions>
void ForecastModelBase<Derived, ModelOptions>::visit_options(OptionVisitor& visitor) {
  models::visit_options(options, visitor);
}

template <class Derived, class ModelOptions>
int64_t ForecastModelBase<Derived, ModelOptions>::outputsize_multiplier() const {
  return options.outputsize_multiplier();
}

template <class Derived, class ModelOptions>
torch::nn::Module& ForecastModelBase<Derived, ModelOptions>::module() {
  return *this;
}

template <class Derived, class ModelOptions>
void ForecastModelBase<Derived, ModelOptions>::pretty_print(std::ostream& stream) const {
  stream << Options::kModelClass << "(";
  OptionPrinter printer(stream);
  Options copy = options;  // a visitor may change what it visits
  models::visit_options(copy, printer);
  stream << ", attention=" << attention_name(options) << ")";
}

template class ForecastModelBase<AutoformerImpl, AutoformerOptions>;
template class ForecastModelBase<FEDformerImpl, FEDformerOptions>;
template class ForecastModelBase<InformerImpl, InformerOptions>;
template class ForecastModelBase<ITransformerImpl, ITransformerOptions>;
template class ForecastModelBase<PatchTSTImpl, PatchTSTOptions>;
template class ForecastModelBase<TFTImpl, TFTOptions>;

}  // namespace flash::models
