#include "train/program.h"

#include <c10/util/Exception.h>

#include <array>
#include <csignal>
#include <cstdlib>
#include <exception>
#include <functional>
#include <iostream>
#include <memory>
#include <string>

#include "train/command/command_line.h"
#include "train/processes.h"
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

// torchrun starts this program, too, but its processes would know nothing of each other and write
// the same files.
void check_alone() {
  const char* processes = std::getenv("WORLD_SIZE");
  const bool has_launcher = std::getenv("TORCHELASTIC_RUN_ID") != nullptr;
  TORCH_CHECK_VALUE(!has_launcher || processes == nullptr || std::string(processes) == "1",
                    "expected one process of this program, got ", processes,
                    "; train on several with `torchrun … -m flash_attention.train`");
}

int main_of(int argc, char** argv,
            const std::function<std::unique_ptr<flash::models::Processes>()>& processes) {
  const IgnoreWriteSignals ignored;
  try {
    const auto command_line = flash::models::parse_command_line(argc, argv);
    if (!command_line.settings) return command_line.exit_code;
    return flash::models::run(*command_line.settings, *processes());
  } catch (const c10::Error& error) {
    std::cerr << "flash_train: " << error.what_without_backtrace() << "\n";
  } catch (const std::exception& error) {
    std::cerr << "flash_train: " << error.what() << "\n";
  }
  return 1;
}

}  // namespace

int flash_train_main(int argc, char** argv) {
  return main_of(argc, argv, [] {
    check_alone();
    return flash::models::single_process();
  });
}

int flash_train_main_of_group(int argc, char** argv, const char* group) {
  return main_of(argc, argv, [group] { return flash::models::processes_of(group); });
}
