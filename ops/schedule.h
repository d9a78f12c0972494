#pragma once
// Private to ops/: runs the plan of a kernel on threads, and allocates scratch memory for each of
// them.

#include <ATen/EmptyTensor.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstdint>

#include "csrc/kernels.h"

namespace flash {

/// The fewest units that are worth a thread.
inline int64_t units_per_thread(const WorkPlan& plan) {
  // Waking a thread takes a few microseconds, in which a core does about this many operations.
  constexpr int64_t kFlopsPerWakeUp = 200'000;
  return std::max<int64_t>(1, kFlopsPerWakeUp / std::max<int64_t>(1, plan.flops_per_unit));
}

/// Calls run(unit_begin, unit_end) on as many threads as the work is worth.
template <class Run>
void run_units(const WorkPlan& plan, Run&& run) {
  at::parallel_for(0, plan.units, units_per_thread(plan), run);
}

/// The grain size for at::parallel_for, and the number of threads that then get units.
struct Schedule {
  explicit Schedule(const WorkPlan& plan) {
    grain = units_per_thread(plan);
    const int64_t available = at::in_parallel_region() ? 1 : at::get_num_threads();
    threads = std::max<int64_t>(1, std::min(available, (plan.units + grain - 1) / grain));
  }
  int64_t grain;
  int64_t threads;
};

/// Calls run(step, unit_begin, unit_end) for all units of all steps. If groups keep the threads
/// busy, each thread takes all steps of its groups in turn: rows stay in its caches from one step
/// to the next, and it waits for no other thread. The order within a group, and so the result, is
/// the same.
template <class Run>
void run_steps(const WorkPlan& plan, const Schedule& schedule, Run&& run) {
  const int64_t groups = plan.steps > 0 ? plan.units / plan.steps : 0;
  if (groups % schedule.threads == 0 || groups >= 8 * schedule.threads) {
    const int64_t grain = (groups + schedule.threads - 1) / schedule.threads;
    at::parallel_for(0, groups, grain, [&](int64_t begin, int64_t end) {
      for (int64_t group = begin; group < end; ++group) {
        for (int64_t step = 0; step < plan.steps; ++step) {
          run(step, group * plan.steps, (group + 1) * plan.steps);
        }
      }
    });
    return;
  }
  for (int64_t step = 0; step < plan.steps; ++step) {
    at::parallel_for(0, plan.units, schedule.grain,
                     [&](int64_t begin, int64_t end) { run(step, begin, end); });
  }
}

/// Memory for each thread, and memory that they share.
class Scratch {
 public:
  Scratch(int64_t bytes, int64_t threads, int64_t shared_bytes = 0)
      : bytes_(bytes),
        threads_(threads),
        memory_(at::detail::empty_cpu({bytes * threads + shared_bytes}, at::kByte)) {}
  void* of_this_thread() const { return at(at::get_thread_num()); }
  void* shared() const { return at(threads_); }

 private:
  void* at(int64_t thread) const { return memory_.mutable_data_ptr<uint8_t>() + bytes_ * thread; }

  int64_t bytes_, threads_;
  at::Tensor memory_;
};

}  // namespace flash
