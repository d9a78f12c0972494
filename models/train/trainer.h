#pragma once
// The training loop.

#include <flash_attention/models/patchtst.h>

#include <vector>

#include "data/csv_dataset.h"
#include "train/progress.h"
#include "train/settings.h"

namespace flash::models {

struct EpochResult {
  double train_loss;  ///< mean absolute error over the epoch's steps, on the standardised scale
  double validation_loss;  ///< mean absolute error after the epoch
  double seconds;
};

struct TrainingResult {
  std::vector<EpochResult> epochs;
  int64_t best_epoch;  ///< from 1; its weights are in the model
  double seconds;
};

/// Trains with Adam on the mean absolute error (neuralforecast's default loss) and leaves the
/// weights of the best validation epoch in the model, in eval mode. The order of windows depends on
/// `settings.seed` alone. Throws c10::ValueError if the loss stops being finite.
TrainingResult train(PatchTST& model, const WindowDataset& train_windows,
                     const WindowDataset& validation_windows, const Settings& settings,
                     Progress& progress);

/// Steps of one epoch.
int64_t steps_per_epoch(const WindowDataset& windows, int64_t batch_size);

}  // namespace flash::models
