#include <c10/util/Exception.h>

#include <exception>
#include <iostream>

#include "train/command_line.h"
#include "train/run.h"

int main(int argc, char** argv) {
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
