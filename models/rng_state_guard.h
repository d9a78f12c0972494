#pragma once

#include <ATen/core/Tensor.h>

namespace flash::models {

/// Restores torch's CPU generator at the end of the scope. For building models whose random weights
/// are replaced immediately.
class RngStateGuard {
 public:
  RngStateGuard();
  ~RngStateGuard();
  RngStateGuard(const RngStateGuard&) = delete;
  RngStateGuard& operator=(const RngStateGuard&) = delete;

 private:
  at::Tensor state_;
};

}  // namespace flash::models
