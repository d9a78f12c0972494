#pragma once
// A model together with what a new table needs before the model can be applied to it.

#include <flash_attention/models/patchtst.h>

#include <string>

#include "data/scaler.h"
#include "train/settings.h"

namespace flash::models {

struct Forecaster {
  PatchTST model{nullptr};
  Scaler scaler;
  DataSettings data;
};

/// One safetensors file with weights, hyperparameters, scaler and data settings.
void save_forecaster(const std::string& path, Forecaster& forecaster);

/// Throws c10::ValueError if the file is broken or was not written by save_forecaster.
Forecaster load_forecaster(const std::string& path, const ModelConfig& config);

}  // namespace flash::models
