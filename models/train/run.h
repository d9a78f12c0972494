#pragma once
// flash_train between its command line and its exit code.

#include "train/settings.h"

namespace flash::models {

/// Trains, or evaluates where settings.evaluate names a model; prints to stdout, progress to
/// stderr. Throws c10::Error where an input or an output is at fault.
void run(const Settings& settings);

}  // namespace flash::models
