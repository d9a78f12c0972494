#include "rng_state_guard.h"

#include <ATen/CPUGeneratorImpl.h>

#include <mutex>

namespace flash::models {

RngStateGuard::RngStateGuard() {
  at::Generator generator = at::detail::getDefaultCPUGenerator();
  const std::lock_guard<std::mutex> lock(generator.mutex());
  state_ = generator.get_state();
}

RngStateGuard::~RngStateGuard() {
  at::Generator generator = at::detail::getDefaultCPUGenerator();
  const std::lock_guard<std::mutex> lock(generator.mutex());
  generator.set_state(state_);
}

}  // namespace flash::models
