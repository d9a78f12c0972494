#include "train/loop/interrupt.h"

#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <initializer_list>

namespace flash::models {
namespace {

volatile std::sig_atomic_t came = 0;  // number of interrupts, at most 2
volatile std::sig_atomic_t held = 0;  // number of HoldInterrupts objects
volatile std::sig_atomic_t last = 0;

void end_program(int signal_number) {
  std::signal(signal_number, SIG_DFL);
  std::raise(signal_number);
}

void remember(int signal_number) {
  last = signal_number;
  if (came == 0) {
    came = 1;
    constexpr char kText[] =
        "\nStopping after this step to write a checkpoint; once more ends at once without one\n";
    const int before = errno;
    [[maybe_unused]] const auto written = write(STDERR_FILENO, kText, sizeof(kText) - 1);
    errno = before;
    return;
  }
  came = 2;
  if (held == 0) end_program(signal_number);
}

}  // namespace

void watch_for_interrupts() {
  struct sigaction action = {};
  action.sa_handler = remember;
  action.sa_flags = SA_RESTART;
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
  struct sigaction before = {};
  sigaction(SIGHUP, nullptr, &before);
  if (before.sa_handler != SIG_IGN) sigaction(SIGHUP, &action, nullptr);  // nohup ignores it
}

bool interrupted() { return came != 0; }

void stop_watching_for_interrupts() {
  for (const int signal_number : {SIGINT, SIGTERM, SIGHUP}) {
    struct sigaction now = {};
    sigaction(signal_number, nullptr, &now);
    if (now.sa_handler == remember) std::signal(signal_number, SIG_DFL);
  }
}

HoldInterrupts::HoldInterrupts() { held = held + 1; }

HoldInterrupts::~HoldInterrupts() {
  held = held - 1;
  if (held == 0 && came == 2) end_program(last);
}

}  // namespace flash::models
