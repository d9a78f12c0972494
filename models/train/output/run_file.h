#pragma once
// The file of an interrupted training.

#include <flash_attention/models/safetensors.h>

#include <string>

#include "train/command/settings.h"
#include "train/loop/trainer.h"

namespace flash::models {

/// Weights, best weights, optimiser, generators, place in the epoch, losses so far and all
/// settings. The file appears once it is complete. Throws c10::ValueError if it cannot be written.
void save_run(const std::string& path, const Settings& settings, const Forecaster& forecaster,
              const Trainer& trainer, const std::string& data_fingerprint);

/// What is needed before there is a trainer to restore.
struct RunFile {
  std::string path;
  SafetensorsFile file;
  Settings settings;  ///< paths are absolute
};

/// Throws c10::ValueError if the file is broken or of something else.
RunFile read_run(const std::string& path);

/// Throws c10::ValueError naming what is missing, unexpected or of another shape, and where the
/// data has changed, before it changes anything.
void restore_run(const RunFile& run, const Forecaster& forecaster, Trainer& trainer,
                 const std::string& data_fingerprint);

}  // namespace flash::models
