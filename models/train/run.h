#pragma once
// flash_train between its command line and its exit code.

#include "train/command/settings.h"

namespace flash::models {

/// Exit code of a training that was interrupted and can be resumed, as shells have it for Ctrl-C.
inline constexpr int kInterruptedExitCode = 130;

/// Trains, goes on, evaluates or predicts, as settings.command says; prints to stdout, progress to
/// stderr. Returns the exit code. Throws c10::Error where an input or an output is at fault.
int run(const Settings& settings);

}  // namespace flash::models
