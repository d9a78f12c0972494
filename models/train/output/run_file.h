#pragma once
// The file of an interrupted training.

#include <flash_attention/models/safetensors.h>

#include <string>

#include "train/command/settings.h"
#include "train/loop/trainer.h"

namespace flash::models {

/// Writes weights, best weights, optimiser, generators, position in the epoch, losses so far and
/// all settings. The file appears when it is complete. Throws c10::ValueError if it cannot be
/// written.
void save_run(const std::string& path, const Settings& settings, const TableForecaster& forecaster,
              const Trainer& trainer, const std::string& data_fingerprint);

/// The part of the file that is needed to build the trainer to restore.
struct RunFile {
  std::string path;
  SafetensorsFile file;
  Settings settings;  ///< paths are absolute
};

/// Throws c10::ValueError if the file is broken or not of an interrupted training.
RunFile read_run(const std::string& path);

/// Restores the trainer. Before it changes anything, throws c10::ValueError naming what is missing,
/// unexpected or of the wrong shape, and if the data has changed.
void restore_run(const RunFile& run, const TableForecaster& forecaster, Trainer& trainer,
                 const std::string& data_fingerprint);

}  // namespace flash::models
