#pragma once
// The progress of a training: a line rewritten in place on a terminal, one per epoch elsewhere.

#include <chrono>
#include <cstdint>
#include <ostream>
#include <string>

namespace flash::models {

/// Seconds as "8 s", "3:05 min" or "2:01:07 h".
std::string format_duration(double seconds);

class Progress {
 public:
  /// `seconds_before` is the time that a resumed training has taken before.
  Progress(std::ostream& stream, bool in_place, int64_t epochs, int64_t steps_per_epoch,
           double seconds_before = 0.0);

  /// Called after step `step` (from 1) of epoch `epoch` (from 1), with that step's loss.
  void step(int64_t epoch, int64_t step, double loss);

  /// Called after an epoch's validation.
  void epoch(int64_t epoch, double train_loss, double validation_loss, bool best);

  /// Ends the line of the running epoch, if there is one.
  void end_line();

  /// Duration of the training in seconds.
  double seconds() const;

 private:
  std::string time_left(int64_t steps_done) const;

  std::ostream& stream_;
  bool in_place_;
  int64_t epochs_, steps_per_epoch_;
  double seconds_before_;
  std::chrono::steady_clock::time_point start_;
  double last_shown_ = -1.0;
  bool line_open_ = false;
};

}  // namespace flash::models
