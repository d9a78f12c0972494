#include <c10/util/Exception.h>

#include <csignal>
#include <exception>
#include <iostream>

#include "train/command_line.h"
#include "train/run.h"

int main(int argc, char** argv) {
  // A pipe whose reader has gone and a file that may not grow are errors of a write like others.
  std::signal(SIGPIPE, SIG_IGN);
  std::signal(SIGXFSZ, SIG_IGN);
  try {
    const auto command_line = flash::models::parse_command_line(argc, argv);
    if (!command_line.settings) return command_line.exit_code;
    return flash::models::run(*command_line.settings);
  } catch (const c10::Error& error) {
    std::cerr << "flash_train: " << error.what_without_backtrace() << "\n";
  } catch (const std::exception& error) {
    std::cerr << "flash_train: " << error.what() << "\n";
  }
  return 1;
}
