#pragma once
// A model of any class from a reader of its options.

#include <flash_attention/models/forecast_model.h>
#include <flash_attention/models/model_config.h>

#include <memory>
#include <string>

#include "model_size.h"
#include "storage/json_options.h"

namespace flash::models {

/// The arguments of a model that are not options of neuralforecast's.
struct FactorySettings {
  int64_t outputsize_multiplier;
  ModelConfig config;
  /// Throw c10::ValueError if the reader holds something that is not an option of the model.
  bool refuse_unknown;
  /// Throw c10::ValueError, before anything is built, if the model would be larger.
  SizeLimit limit;
};

// In registry.cpp.

/// make_model of registry.h with explicit settings.
FLASH_API std::shared_ptr<ForecastModel> make_model(const std::string& model_class,
                                                    const std::string& options,
                                                    const FactorySettings& settings);

/// Throws c10::ValueError for an unknown class.
std::shared_ptr<ForecastModel> make_model(const std::string& model_class, JsonOptionReader& reader,
                                          const FactorySettings& settings);

}  // namespace flash::models
