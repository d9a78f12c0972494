#include "train/command/stored_settings.h"

#include <cmath>

namespace flash::models {
namespace {

constexpr int64_t kMostCount = int64_t{1} << 32;  // products of two stay within int64_t
constexpr int64_t kMostThreads = 1024;  // with many thousands, thread creation aborts the program

void check_count(const std::string& path, const char* name, int64_t value, int64_t least,
                 int64_t most) {
  TORCH_CHECK_VALUE(value >= least && value <= most, path, ": expected ", name, " between ", least,
                    " and ", most, ", got ", value);
}

}  // namespace

void check_batch_size(int64_t batch_size, const std::string& path) {
  check_count(path, "batch_size", batch_size, 1, kMostCount);
}

void check_training_settings(const Settings& settings, const std::string& path) {
  const TrainingSettings& training = settings.training;
  check_batch_size(training.batch_size, path);
  check_count(path, "epochs", training.epochs, 1, kMostCount);
  check_count(path, "patience", training.patience, 0, kMostCount);
  check_count(path, "decay_after", training.decay_after, 0, kMostCount);
  check_count(path, "threads", settings.threads, 0, kMostThreads);
  TORCH_CHECK_VALUE(training.learning_rate > 0.0 && std::isfinite(training.learning_rate), path,
                    ": expected a learning_rate above 0, got ", training.learning_rate);
  TORCH_CHECK_VALUE(training.decay >= 0.0 && training.decay <= 1.0, path,
                    ": expected decay between 0 and 1, got ", training.decay);
}

}  // namespace flash::models
