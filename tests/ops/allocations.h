#pragma once
// The bytes that torch's CPU allocator allocates during a call.

#include <ATen/ThreadLocalState.h>
#include <c10/core/Allocator.h>
#include <c10/util/ThreadLocalDebugInfo.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <mutex>

namespace flash::tests {

/// Counts the bytes in use, and their maximum. at::parallel_for passes it on to its threads.
class AllocationCounter : public c10::MemoryReportingInfoBase {
 public:
  void reportMemoryUsage(void*, int64_t size, size_t, size_t, c10::Device) override {
    const std::lock_guard lock(mutex_);
    held_ += size;
    peak_ = std::max(peak_, held_);
  }
  bool memoryProfilingEnabled() const override { return true; }
  int64_t held() const { return held_; }
  int64_t peak() const { return peak_; }

 private:
  std::mutex mutex_;
  int64_t held_ = 0;
  int64_t peak_ = 0;
};

/// The peak of bytes in use during `call`, beyond those of its result: what is in use after it.
template <class Call>
int64_t peak_beyond_result(Call&& call) {
  const auto counter = std::make_shared<AllocationCounter>();
  const c10::DebugInfoGuard guard(c10::DebugInfoKind::PROFILER_STATE, counter);
  const auto result = call();
  return counter->peak() - counter->held();
}

}  // namespace flash::tests
