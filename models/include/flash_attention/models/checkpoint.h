#pragma once
// A model and its hyperparameters in one safetensors file that neuralforecast 3.3 can read too.
//
//     save_model("tft.safetensors", *model);
//     TFT again = load_model<TFT>("tft.safetensors", {.use_flash_attention = true});

#include <flash_attention/models/forecast_model.h>
#include <flash_attention/models/model_config.h>
#include <flash_attention/models/safetensors.h>

#include <memory>
#include <string>
#include <utility>

namespace flash::models {

/// neuralforecast's `state_dict()` without its losses: parameters, buffers, and the constant masks
/// that our models don't store. Parameters that several modules share appear under each name.
FLASH_API TensorMap neuralforecast_state_dict(ForecastModel& model);

/// Writes weights and hyperparameters. `keep` is usually the file that the model was loaded from.
/// Its metadata is written too. Of its `hyper_parameters` those are kept that are not options of
/// the model (loss, scaler_type, learning_rate, ...), and of its tensors those that belong to
/// neuralforecast's losses and window scaler.
///
/// `neuralforecast.models.<class>.load(path)` reads the file if it names the loss for the model's
/// outputs. With an outputsize_multiplier of 1 the default is MAE; otherwise `keep` must name one.
/// FEDformer's frequencies are stored in the metadata as `fourier_index`, which neuralforecast
/// ignores: it draws them from random_seed, so it cannot reproduce lists that were given
/// explicitly. Throws c10::ValueError as write_safetensors does, and for a FEDformer in double
/// precision.
FLASH_API void save_model(const std::string& path, ForecastModel& model,
                          const SafetensorsFile& keep = {});

/// A model of the class that the file names, in eval mode. The file comes from `save_model` or from
/// neuralforecast's `save`; a FEDformer from the latter gets the frequencies of its random_seed.
/// `options`, a JSON object like that of make_model, overrides hyperparameters of the file.
///
/// Throws c10::ValueError if the file is broken or holds an unsupported model, or if a
/// hyperparameter or tensor is missing, does not fit, or needs something that the model lacks.
FLASH_API std::shared_ptr<ForecastModel> load_model(const std::string& path,
                                                    const ModelConfig& config = {},
                                                    const std::string& options = "{}");

/// As above, from a file that has been read.
FLASH_API std::shared_ptr<ForecastModel> load_model(const SafetensorsFile& file,
                                                    const ModelConfig& config = {},
                                                    const std::string& options = "{}");

/// For load_model below: throws c10::ValueError.
[[noreturn]] FLASH_API void refuse_class(const std::string& loaded);

/// load_model where the class is known: `Model` is TFT, Informer, ... Throws c10::ValueError if the
/// file holds another one.
template <class Model, class File>
Model load_model(const File& file, const ModelConfig& config = {},
                 const std::string& options = "{}") {
  const std::shared_ptr<ForecastModel> loaded = load_model(file, config, options);
  auto model = std::dynamic_pointer_cast<typename Model::Impl>(loaded);
  if (!model) refuse_class(loaded->model_class());
  return Model(std::move(model));
}

}  // namespace flash::models
