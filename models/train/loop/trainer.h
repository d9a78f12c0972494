#pragma once
// The training loop.

#include <ATen/core/Generator.h>

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "train/loop/adam.h"
#include "train/loop/gradient_exchange.h"
#include "train/loop/progress.h"
#include "train/output/evaluation.h"
#include "train/output/table_forecaster.h"
#include "train/processes.h"

namespace flash::models {

struct EpochResult {
  double train_loss;       ///< mean over the epoch's steps, on the standardised scale
  double validation_loss;  ///< after the epoch; the best epoch has the smallest
  double validation_mae;
  double validation_mse;
  double learning_rate;
  double seconds;
};

struct TrainingResult {
  std::vector<EpochResult> epochs;
  int64_t best_epoch;  ///< from 1
  double seconds;
};

/// The position in a training. Together with weights, optimiser and generators it is the whole
/// state.
struct TrainingState {
  int64_t epoch = 1;      ///< the current epoch, from 1
  int64_t step = 0;       ///< completed steps of this epoch
  at::Tensor order;       ///< order of its windows, int64; undefined before its first step
  double loss_sum = 0.0;  ///< over the windows of the completed steps
  double epoch_seconds = 0.0;
  TrainingResult result{.epochs = {}, .best_epoch = 0, .seconds = 0.0};
  std::map<std::string, at::Tensor> best;  ///< TableForecaster::state() of the best epoch
};

/// Trains with Adam. The order of windows depends on the seed only; dropout depends on torch's
/// default generator, or on the seed and the process if there are several. These compute the steps
/// of one, each a share of the windows, and have the same weights at any time.
class Trainer {
 public:
  Trainer(TableForecaster& forecaster, const WindowDataset& train_windows,
          const WindowDataset& validation_windows, const TrainingSettings& settings,
          Processes& processes);

  /// Trains to the end, leaves the weights of the best epoch in the model, in evaluation mode, and
  /// returns true; or stops between two steps once `interrupted` returns true, and returns false.
  /// Another run() continues with the same results as without the interruption. `after_epoch` is
  /// called between two epochs with whether the last one was the best so far. Throws
  /// c10::ValueError if the loss is not finite.
  bool run(Progress& progress, const std::function<bool()>& interrupted,
           const std::function<void(bool best)>& after_epoch);

  int64_t windows() const { return train_windows_.size(); }
  /// That of the settings, or the number of windows if that is smaller.
  int64_t batch_size() const;
  int64_t steps_per_epoch() const;

  TrainingState state;
  Adam adam;
  at::Generator order_generator;

 private:
  double learning_rate() const;
  bool finished() const;
  void step();
  double backward(const at::Tensor& indices);
  void check_loss(double loss) const;
  bool finish_epoch(Progress& progress, const std::function<bool()>& interrupted);

  TableForecaster& forecaster_;
  const WindowDataset& train_windows_;
  const WindowDataset& validation_windows_;
  const TrainingSettings& settings_;
  Processes& processes_;
  GradientExchange exchange_;
  double last_loss_ = 0.0;
};

}  // namespace flash::models
