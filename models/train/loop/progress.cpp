#include "train/loop/progress.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

namespace flash::models {
namespace {

template <class... Values>
std::string format(const char* pattern, Values... values) {
  char text[160];
  std::snprintf(text, sizeof(text), pattern, values...);
  return text;
}

}  // namespace

std::string format_duration(double seconds) {
  constexpr double kLongest = 100 * 365 * 24 * 3600.0;  // a century; lround must not overflow
  const long whole = std::lround(std::min(seconds, kLongest));
  if (whole < 60) return format("%ld s", whole);
  if (whole < 3600) return format("%ld:%02ld min", whole / 60, whole % 60);
  return format("%ld:%02ld:%02ld h", whole / 3600, whole / 60 % 60, whole % 60);
}

Progress::Progress(std::ostream& stream, bool in_place, int64_t epochs, int64_t steps_per_epoch,
                   double seconds_before)
    : stream_(stream),
      in_place_(in_place),
      epochs_(epochs),
      steps_per_epoch_(steps_per_epoch),
      seconds_before_(seconds_before),
      start_(std::chrono::steady_clock::now()) {}

double Progress::seconds() const {
  return seconds_before_ +
         std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
}

std::string Progress::time_left(int64_t steps_done) const {
  const auto done = static_cast<double>(steps_done);
  const double all = static_cast<double>(epochs_) * static_cast<double>(steps_per_epoch_);
  return format_duration(seconds() * (all - done) / done) + " left";
}

void Progress::step(int64_t epoch, int64_t step, double loss) {
  constexpr double kSecondsBetweenUpdates = 0.1;  // so that a slow terminal does not slow training
  if (!in_place_ || seconds() - last_shown_ < kSecondsBetweenUpdates) return;
  last_shown_ = seconds();
  line_open_ = true;
  stream_ << format("\repoch %lld/%lld  step %lld/%lld  loss %.4f  ", static_cast<long long>(epoch),
                    static_cast<long long>(epochs_), static_cast<long long>(step),
                    static_cast<long long>(steps_per_epoch_), loss)
          << time_left((epoch - 1) * steps_per_epoch_ + step) << "\x1b[K" << std::flush;
}

void Progress::end_line() {
  if (line_open_) stream_ << "\n" << std::flush;
  line_open_ = false;
}

void Progress::epoch(int64_t epoch, double train_loss, double validation_loss, bool best) {
  stream_ << (in_place_ ? "\r" : "")
          << format("epoch %lld/%lld  step %lld  train loss %.4f  validation loss %.4f%s  ",
                    static_cast<long long>(epoch), static_cast<long long>(epochs_),
                    static_cast<long long>(epoch * steps_per_epoch_), train_loss, validation_loss,
                    best ? " (best)" : "")
          << format_duration(seconds()) << ", " << time_left(epoch * steps_per_epoch_)
          << (in_place_ ? "\x1b[K" : "") << "\n"
          << std::flush;
  line_open_ = false;
}

}  // namespace flash::models
