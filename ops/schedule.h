#pragma once
// Private to ops/: how many threads a plan's units are worth, and memory for each of them.

#include <ATen/EmptyTensor.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstdint>

#include "ops/kernel_call.h"

namespace flash {

/// How many units a thread takes at least, and how many threads that leaves something to do.
struct Schedule {
  explicit Schedule(const WorkPlan& plan) {
    grain = units_per_thread(plan);
    const int64_t available = at::in_parallel_region() ? 1 : at::get_num_threads();
    threads = std::max<int64_t>(1, std::min(available, (plan.units + grain - 1) / grain));
  }
  int64_t grain;
  int64_t threads;
};

/// Memory for each thread, and some for all of them.
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
