#pragma once
// Handling of Ctrl-C, `kill` and a closed terminal between two steps of a training.

namespace flash::models {

/// From now on the first SIGINT, SIGTERM or SIGHUP sets a flag and prints a message; a second one
/// ends the program immediately.
void watch_for_interrupts();

/// Whether the flag is set.
bool interrupted();

/// From now on an interrupt ends the program again. Call it when there is nothing left to lose.
void stop_watching_for_interrupts();

/// During its lifetime no interrupt ends the program, so that files are written completely. A
/// second interrupt takes effect afterwards.
class HoldInterrupts {
 public:
  HoldInterrupts();
  ~HoldInterrupts();
  HoldInterrupts(const HoldInterrupts&) = delete;
  HoldInterrupts& operator=(const HoldInterrupts&) = delete;
};

}  // namespace flash::models
