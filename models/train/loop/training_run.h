#pragma once
// The commands that train.

#include "train/command/settings.h"

namespace flash::models {

/// Trains from random weights; returns the exit code.
int run_training(const Settings& settings);

/// Goes on with the training whose checkpoint settings.input names.
int run_resumed_training(const Settings& settings);

}  // namespace flash::models
