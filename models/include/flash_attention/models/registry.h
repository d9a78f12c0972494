#pragma once
// A model by the name of its class, from options in JSON.

#include <flash_attention/export.h>
#include <flash_attention/models/forecast_model.h>
#include <flash_attention/models/model_config.h>

#include <memory>
#include <string>
#include <vector>

namespace flash::models {

/// "Autoformer", "FEDformer", "Informer", "PatchTST", "TFT", "iTransformer".
FLASH_API const std::vector<std::string>& model_classes();

/// A model from neuralforecast's keyword arguments, given as a JSON object. `h` and `input_size`
/// (and iTransformer's `n_series`) are required; the others have defaults.
///
/// Throws c10::ValueError naming the class or option that is unknown, missing, of the wrong type or
/// out of range.
FLASH_API std::shared_ptr<ForecastModel> make_model(const std::string& model_class,
                                                    const std::string& options,
                                                    int64_t outputsize_multiplier = 1,
                                                    const ModelConfig& config = {});

}  // namespace flash::models
