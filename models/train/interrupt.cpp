#include "train/interrupt.h"

#include <csignal>

namespace flash::models {
namespace {

volatile std::sig_atomic_t came = 0;

void remember(int) { came = 1; }

}  // namespace

void watch_for_interrupts() {
  struct sigaction action = {};
  action.sa_handler = remember;
  action.sa_flags = static_cast<int>(SA_RESETHAND) | SA_RESTART;
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
}

bool interrupted() { return came != 0; }

}  // namespace flash::models
