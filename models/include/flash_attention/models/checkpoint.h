#pragma once
// A model with its hyperparameters in one safetensors file, exchangeable with neuralforecast 3.3.
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

/// All that neuralforecast's `state_dict()` has, apart from its loss: parameters and buffers, and
/// the constant masks that our models do without. Parameters shared by several modules are there
/// under each name.
FLASH_API TensorMap neuralforecast_state_dict(ForecastModel& model);

/// Writes weights and hyperparameters. `keep` may be the file that the model was loaded from, or be
/// made up: its metadata is written too, of its `hyper_parameters` those that are no options of the
/// model (loss, scaler_type, learning_rate, ...), and of its tensors those that neuralforecast's
/// losses and window scaler own.
///
/// `neuralforecast.models.<class>.load(path)` reads the file if it says which loss takes the
/// model's outputs: where outputsize_multiplier is 1 that is MAE by default, otherwise `keep` has
/// to. A FEDformer's mode lists are an entry of ours, `fourier_index`, in the metadata;
/// neuralforecast draws its own from random_seed, so lists that were given by hand are ours alone.
/// Throws c10::ValueError as write_safetensors does, and for a FEDformer in double precision.
FLASH_API void save_model(const std::string& path, ForecastModel& model,
                          const SafetensorsFile& keep = {});

/// A model of the class that the file names, in eval mode. The file is one of `save_model` or of
/// neuralforecast's `save`, whose FEDformer gets the modes that its random_seed stands for.
/// `options` is a JSON object like that of make_model: it replaces hyperparameters of the file.
///
/// Throws c10::ValueError if the file is broken, holds another kind of model, lacks a
/// hyperparameter or a tensor, has one that does not fit, or needs something that the model lacks.
FLASH_API std::shared_ptr<ForecastModel> load_model(const std::string& path,
                                                    const ModelConfig& config = {},
                                                    const std::string& options = "{}");

/// As above, from a file already read.
FLASH_API std::shared_ptr<ForecastModel> load_model(const SafetensorsFile& file,
                                                    const ModelConfig& config = {},
                                                    const std::string& options = "{}");

/// For load_model below: throws c10::ValueError.
[[noreturn]] FLASH_API void refuse_class(const std::string& loaded);

/// load_model of a known class, `Model` being TFT, Informer, ...; c10::ValueError for another one.
template <class Model, class File>
Model load_model(const File& file, const ModelConfig& config = {},
                 const std::string& options = "{}") {
  const std::shared_ptr<ForecastModel> loaded = load_model(file, config, options);
  auto model = std::dynamic_pointer_cast<typename Model::Impl>(loaded);
  if (!model) refuse_class(loaded->model_class());
  return Model(std::move(model));
}

}  // namespace flash::models
