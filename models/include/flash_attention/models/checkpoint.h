#pragma once
// A PatchTST with its hyperparameters in one safetensors file, exchangeable with neuralforecast.

#include <flash_attention/models/model_config.h>
#include <flash_attention/models/patchtst.h>
#include <flash_attention/models/safetensors.h>

#include <string>

namespace flash::models {

/// Writes weights and hyperparameters; `metadata` is added to the header. Where the options have
/// outputsize_multiplier 1, `neuralforecast.models.PatchTST.load(path)` reads the file.
/// Throws c10::ValueError as write_safetensors does.
FLASH_API void save_patchtst(const std::string& path, PatchTST& model, Metadata metadata = {});

/// A model from a file of `save_patchtst` or of neuralforecast's `PatchTST.save`, in eval mode.
/// Throws c10::ValueError if the file is broken, holds another model, or needs an option that this
/// PatchTST lacks.
FLASH_API PatchTST load_patchtst(const std::string& path, const ModelConfig& config = {});

/// As above, from a file already read.
FLASH_API PatchTST load_patchtst(const SafetensorsFile& file, const ModelConfig& config = {});

}  // namespace flash::models
