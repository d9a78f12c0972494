#pragma once
// The part of a model that is the same in all six.

#include <flash_attention/export.h>
#include <flash_attention/models/forecast_model.h>
#include <torch/nn/cloneable.h>

#include <cstdint>
#include <ostream>
#include <string>

namespace flash::models {

/// Implements ForecastModel except `forward`. Compiled into the library for the six models only.
/// Its template arguments must be FLASH_API, too, or the library would not export its members.
template <class Derived, class ModelOptions>
class FLASH_API ForecastModelBase : public torch::nn::Cloneable<Derived>, public ForecastModel {
 public:
  using Options = ModelOptions;

  std::string model_class() const override;
  void visit_options(OptionVisitor& visitor) override;
  int64_t outputsize_multiplier() const override;
  torch::nn::Module& module() override;
  /// The class and its options.
  void pretty_print(std::ostream& stream) const override;

  Options options;

 protected:
  /// Throws c10::ValueError if an option is outside the range that visit_options gives it.
  explicit ForecastModelBase(Options options_);
};

}  // namespace flash::models
