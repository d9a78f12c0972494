#pragma once
// The weights of the best epoch, on disk while the training goes on.

#include <string>

#include "train/command/settings.h"
#include "train/loop/trainer.h"
#include "train/output/forecaster.h"

namespace flash::models {

/// The model file that a training leaves behind, whatever becomes of it. Until the training ends it
/// is a file of its own beside the output, since the output may be an older model that is better.
class BestModel {
 public:
  /// A training that is `resumed` may find the file of its first part.
  BestModel(const OutputSettings& output, bool resumed);

  /// After an epoch that is better than all before it: writes the model if one is asked for. A disk
  /// that is full is no reason to end a training: that is told on stderr.
  void keep(const Forecaster& forecaster, int64_t epoch);

  /// At the end, with the best weights in the model: writes the output, and removes the file that
  /// was in its place.
  void finish(const Forecaster& forecaster, int64_t best_epoch);

  /// When the training failed: sees to it that the best weights are on disk, if need be in the
  /// folder for temporary files or in the current one. Says where; "" if there are none.
  std::string rescue(const Forecaster& forecaster, const TrainingState& state);

  /// Where the last epoch that was kept is; "" if none was.
  std::string where() const;

 private:
  std::string output_, kept_path_;
  std::string on_disk_;  // empty if nothing is
  int64_t epoch_ = 0;    // that it is of; 0: not known
};

}  // namespace flash::models
