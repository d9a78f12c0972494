#pragma once
// Sums gradients over processes while the backward still computes others.
//
// Li et al., "PyTorch Distributed" (VLDB 2020), section 3.2: gradients are copied into buckets in
// about the order in which a backward reaches them, and the sum of a bucket starts when it is
// complete. Unlike c10d::Reducer, which only Python's DistributedDataParallel may use, it sums, so
// that processes with shares of unequal size can weigh their losses.

#include <ATen/core/Tensor.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "train/processes.h"

namespace flash::models {

class GradientExchange {
 public:
  /// The float32 or complex64 leaves whose gradients are summed. Nothing happens for one process.
  GradientExchange(const std::vector<std::pair<std::string, at::Tensor>>& parameters,
                   Processes& processes);
  ~GradientExchange();
  GradientExchange(const GradientExchange&) = delete;
  GradientExchange& operator=(const GradientExchange&) = delete;

  /// To be called before a backward, when no parameter has a gradient.
  void begin();
  /// To be called after it: every parameter that has a gradient then has the sum over processes.
  void finish();

 private:
  struct Bucket {
    at::Tensor values;  // float32, the gradients one after the other
    size_t parameters = 0;
    size_t missing = 0;  // gradients that the backward has not reached yet
    std::unique_ptr<PendingSum> sum;
  };
  struct Entry {
    at::Tensor parameter;
    at::Tensor gradient;  // a view of the bucket in the parameter's shape and dtype
    size_t bucket;
  };

  void arrived(size_t entry, const at::Tensor& gradient);
  void start_next();

  Processes& processes_;
  std::vector<Entry> entries_;
  std::vector<Bucket> buckets_;
  size_t started_ = 0;  // buckets whose sums have started: the same order on every process
  bool active_ = false;
};

}  // namespace flash::models
