#pragma once
// The command line of flash_train.

#include <optional>

#include "train/command/settings.h"

namespace flash::models {

/// The settings, or the exit code: 0 after --help, 2 after printing an error.
struct CommandLine {
  std::optional<Settings> settings;
  int exit_code = 0;
};

CommandLine parse_command_line(int argc, const char* const* argv);

}  // namespace flash::models
