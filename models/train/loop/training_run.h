#pragma once
// The commands `train` and `resume`.

#include "train/command/settings.h"
#include "train/processes.h"

namespace flash::models {

/// Trains from random weights; returns the exit code.
int run_training(const Settings& settings, Processes& processes);

/// Resumes the training from the checkpoint settings.input; returns the exit code.
int run_resumed_training(const Settings& settings, Processes& processes);

}  // namespace flash::models
