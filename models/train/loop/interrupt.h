#pragma once
// Ctrl-C, `kill` and a closed terminal, answered between two steps of a training.

namespace flash::models {

/// From now on the first SIGINT, SIGTERM or SIGHUP only sets a flag and says so; a second one ends
/// the program at once.
void watch_for_interrupts();

/// Whether one came.
bool interrupted();

/// From now on an interrupt ends the program again: nothing is left that it could lose.
void stop_watching_for_interrupts();

/// While one lives, no interrupt ends the program: what is being written is written to its end, and
/// a second interrupt counts afterwards.
class HoldInterrupts {
 public:
  HoldInterrupts();
  ~HoldInterrupts();
  HoldInterrupts(const HoldInterrupts&) = delete;
  HoldInterrupts& operator=(const HoldInterrupts&) = delete;
};

}  // namespace flash::models
