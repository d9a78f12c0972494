// Ctrl-C once, twice, and while a file is being written.

#include "train/loop/interrupt.h"

#include <gtest/gtest.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>

namespace flash::tests {
namespace {

using models::HoldInterrupts;
using models::interrupted;
using models::watch_for_interrupts;

/// Ends the process with 7 if it is still alive.
[[noreturn]] void survived() { std::_Exit(7); }

class Interrupts : public testing::TestWithParam<int> {
 protected:
  Interrupts() { GTEST_FLAG_SET(death_test_style, "threadsafe"); }
};

TEST_P(Interrupts, SetAFlagAndPrintAMessageTheFirstTime) {
  EXPECT_EXIT(
      {
        watch_for_interrupts();
        if (interrupted()) std::_Exit(1);
        std::raise(GetParam());
        if (!interrupted()) std::_Exit(2);
        survived();
      },
      testing::ExitedWithCode(7), "Stopping after this step to write a checkpoint; once more ends");
}

TEST_P(Interrupts, EndTheProgramTheSecondTime) {
  EXPECT_EXIT(
      {
        watch_for_interrupts();
        std::raise(GetParam());
        std::raise(GetParam());
        survived();
      },
      testing::KilledBySignal(GetParam()), "");
}

TEST_P(Interrupts, EndTheProgramAfterTheTraining) {
  EXPECT_EXIT(
      {
        watch_for_interrupts();
        models::stop_watching_for_interrupts();
        std::raise(GetParam());
        survived();
      },
      testing::KilledBySignal(GetParam()), "");
}

TEST_P(Interrupts, WaitUntilAFileIsWritten) {
  EXPECT_EXIT(
      {
        watch_for_interrupts();
        {
          const HoldInterrupts outer;
          {
            const HoldInterrupts inner;
            std::raise(GetParam());
            std::raise(GetParam());
          }
          std::fputs("written to its end", stderr);
        }
        survived();
      },
      testing::KilledBySignal(GetParam()), "written to its end");
  EXPECT_EXIT(
      {
        watch_for_interrupts();
        {
          const HoldInterrupts hold;
          std::raise(GetParam());
        }
        survived();
      },
      testing::ExitedWithCode(7), "");
}

INSTANTIATE_TEST_SUITE_P(
    Signals, Interrupts, testing::Values(SIGINT, SIGTERM, SIGHUP), [](const auto& info) {
      return std::string(info.param == SIGINT ? "Int" : info.param == SIGTERM ? "Term" : "Hup");
    });

TEST(Hangup, IsIgnoredUnderNohup) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(
      {
        std::signal(SIGHUP, SIG_IGN);
        watch_for_interrupts();
        std::raise(SIGHUP);
        std::_Exit(interrupted() ? 1 : 7);
      },
      testing::ExitedWithCode(7), "");
}

}  // namespace
}  // namespace flash::tests
