#include "train/program.h"

#include <c10/util/Exception.h>

#include <array>
#include <csignal>
#include <exception>
#include <iostream>

#include "train/command/command_line.h"
#include "train/run.h"

namespace {

// Ignored, so that a closed pipe and a file size limit become ordinary errors of a write.
class IgnoreWriteSignals {
 public:
  IgnoreWriteSignals() {
    for (size_t i = 0; i < kSignals.size(); ++i) before_[i] = std::signal(kSignals[i], SIG_IGN);
  }
  ~IgnoreWriteSignals() {
    for (size_t i = 0; i < kSignals.size(); ++i) std::signal(kSignals[i], before_[i]);
  }
  IgnoreWriteSignals(const IgnoreWriteSignals&) = delete;
  IgnoreWriteSignals& operator=(const IgnoreWriteSignals&) = delete;

 private:
  static constexpr std::array<int, 2> kSignals{SIGPIPE, SIGXFSZ};
  std::array<void (*)(int), 2> before_{};
};

}  // namespace

int flash_train_main(int argc, char** argv) {
  const IgnoreWriteSignals ignored;
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
