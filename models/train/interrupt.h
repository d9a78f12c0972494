#pragma once
// Ctrl-C and `kill`, answered between two steps of a training.

namespace flash::models {

/// From now on the first SIGINT or SIGTERM only sets a flag; a second one ends the program at once.
void watch_for_interrupts();

/// Whether one came.
bool interrupted();

}  // namespace flash::models
