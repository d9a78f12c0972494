// A plan never runs on more threads than there is scratch memory for, and its steps run in order.

#include "ops/schedule.h"

#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cstddef>
#include <vector>

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

TEST(Schedule, RunsEveryUnitOnceInEachStepAndTheStepsOfAGroupInOrder) {
  const int before = at::get_num_threads();
  at::set_num_threads(4);
  for (const int64_t steps : {1, 2, 4}) {
    for (const int64_t groups : {0, 1, 3, 4, 7, 8, 33}) {
      const WorkPlan plan = {.units = groups * steps, .steps = steps, .flops_per_unit = 1'000'000};
      std::vector<std::atomic<int64_t>> done(static_cast<size_t>(plan.units));
      run_steps(plan, Schedule(plan), [&](int64_t step, int64_t begin, int64_t end) {
        const int64_t first_group = begin / steps, last_group = (end - 1) / steps;
        for (int64_t unit = begin; unit < end; ++unit) {
          EXPECT_EQ(done[static_cast<size_t>(unit)]++, step);
        }
        for (int64_t unit = first_group * steps; unit < (last_group + 1) * steps; ++unit) {
          EXPECT_GE(done[static_cast<size_t>(unit)], step) << "a step started too early";
        }
      });
      for (const auto& count : done) EXPECT_EQ(count, steps);
    }
  }
  at::set_num_threads(before);
}

}  // namespace
}  // namespace flash
