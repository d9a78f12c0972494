// A plan never runs on more threads than there is scratch memory for.

#include "ops/schedule.h"

#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <atomic>

namespace flash {
namespace {

/// The largest index of a thread that runs some of the units.
int64_t last_thread_of(int64_t units, int64_t grain) {
  std::atomic<int64_t> last = 0;
  at::parallel_for(0, units, grain, [&](int64_t, int64_t) {
    const int64_t thread = at::get_thread_num();
    int64_t seen = last;
    while (seen < thread && !last.compare_exchange_weak(seen, thread)) {
    }
  });
  return last;
}

TEST(Schedule, CountsEveryThreadThatTakesUnits) {
  const int before = at::get_num_threads();
  at::set_num_threads(8);
  // From one unit per thread to all units on one thread.
  for (const int64_t flops : {1'000'000, 70'000, 60'000, 30'000, 15'000, 0}) {
    for (int64_t units = 0; units <= 40; ++units) {
      const Schedule schedule(WorkPlan{.units = units, .steps = 1, .flops_per_unit = flops});
      EXPECT_LT(last_thread_of(units, schedule.grain), schedule.threads)
          << units << " units of " << flops;
    }
  }
  at::set_num_threads(before);
}

}  // namespace
}  // namespace flash
