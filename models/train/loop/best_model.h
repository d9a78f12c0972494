#pragma once
// Keeps the weights of the best epoch on disk during training.

#include <string>

#include "train/command/settings.h"
#include "train/loop/trainer.h"
#include "train/output/table_forecaster.h"

namespace flash::models {

/// The model file of a training, which exists however the training ends. Until the end it is a
/// separate file next to the output, because the output may be an older, better model.
class BestModel {
 public:
  /// If the training is `resumed`, the file of its first part may exist.
  BestModel(const OutputSettings& output, bool resumed);

  /// Called after an epoch that is better than all before: writes the model if one was requested. A
  /// full disk does not end the training; it is reported on stderr.
  void keep(const TableForecaster& forecaster, int64_t epoch);

  /// Called at the end, with the best weights in the model: writes the output and removes the
  /// separate file.
  void finish(const TableForecaster& forecaster, int64_t best_epoch);

  /// Called when the training failed: makes sure that the best weights are on disk, if necessary in
  /// the folder for temporary files or in the current folder. Returns the path; "" if there are
  /// none.
  std::string rescue(const TableForecaster& forecaster, const TrainingState& state);

  /// Path of the last saved epoch; "" if there is none.
  std::string where() const;

 private:
  std::string output_, kept_path_;
  std::string on_disk_;  // path of the saved weights; empty if there are none
  int64_t epoch_ = 0;    // their epoch; 0 if unknown
};

}  // namespace flash::models
