#pragma once
// Any of the six models by its name, from options given as text.

#include <flash_attention/export.h>
#include <flash_attention/models/forecast_model.h>
#include <flash_attention/models/model_config.h>

#include <memory>
#include <string>
#include <vector>

namespace flash::models {

/// "Autoformer", "FEDformer", "Informer", "PatchTST", "TFT", "iTransformer".
FLASH_API const std::vector<std::string>& model_classes();

/// A model from neuralforecast's keyword arguments as a JSON object. Those that are not given have
/// their defaults; `h` and `input_size` (and iTransformer's `n_series`) have none.
///
/// Throws c10::ValueError naming the class or the option if one is unknown, missing, of a wrong
/// type or out of range.
FLASH_API std::shared_ptr<ForecastModel> make_model(const std::string& model_class,
                                                    const std::string& options,
                                                    int64_t outputsize_multiplier = 1,
                                                    const ModelConfig& config = {});

}  // namespace flash::models
