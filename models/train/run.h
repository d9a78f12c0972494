#pragma once
// Runs a command of flash_train.

#include "train/command/settings.h"
#include "train/processes.h"

namespace flash::models {

/// Exit code of a training that was interrupted and can be resumed; the shells' code for Ctrl-C.
inline constexpr int kInterruptedExitCode = 130;

/// Trains, resumes, evaluates or predicts, according to settings.command. Prints results to stdout
/// and progress to stderr, and returns the exit code. Of several processes, which only a training
/// may have, the first one prints and writes files. Throws c10::Error for invalid inputs and for
/// outputs that cannot be written.
int run(const Settings& settings, Processes& processes);

}  // namespace flash::models
