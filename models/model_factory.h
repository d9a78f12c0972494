#pragma once
// How a model class is made from a reader of its options; registry.cpp has one line for each.

#include <flash_attention/models/forecast_model.h>
#include <flash_attention/models/model_config.h>

#include <memory>
#include <string>

#include "model_size.h"
#include "storage/json_options.h"

namespace flash::models {

/// What is no option of neuralforecast's.
struct FactorySettings {
  int64_t outputsize_multiplier;
  ModelConfig config;
  /// Throw c10::ValueError where the reader has something else than options of the model.
  bool refuse_unknown;
  /// Throw c10::ValueError, before anything is built, where the model would be larger.
  SizeLimit limit;
};

template <class Impl, class Options>
std::shared_ptr<ForecastModel> read_and_make(Options options, JsonOptionReader& reader,
                                             const FactorySettings& settings) {
  visit_options(options, reader);
  if (settings.refuse_unknown) reader.refuse_unknown();
  options.outputsize_multiplier(settings.outputsize_multiplier).config(settings.config);
  check_size(reader.context(), model_size(options), settings.limit);
  return std::make_shared<Impl>(options);
}

// In registry.cpp.

/// make_model of registry.h with settings of its own.
FLASH_API std::shared_ptr<ForecastModel> make_model(const std::string& model_class,
                                                    const std::string& options,
                                                    const FactorySettings& settings);

/// Throws c10::ValueError for a class that is none of the six.
std::shared_ptr<ForecastModel> make_model(const std::string& model_class, JsonOptionReader& reader,
                                          const FactorySettings& settings);

}  // namespace flash::models
