#pragma once
// What a layer computes from all windows of a batch, which several processes may share.

#include <ATen/core/Tensor.h>
#include <flash_attention/export.h>
#include <torch/nn/modules/batchnorm.h>

namespace flash::models {

/// Sums tensors over the processes that train together.
class FLASH_API ProcessSum {
 public:
  virtual ~ProcessSum() = default;
  /// The elementwise sum of what every process passes, the same on each. Every process must call it
  /// equally often, with tensors of the same size.
  virtual at::Tensor sum(const at::Tensor& tensor) = 0;
};

/// During its lifetime, the functions below see the rows of all processes, on this thread and in
/// training mode.
class FLASH_API SharedStatistics {
 public:
  explicit SharedStatistics(ProcessSum& processes);
  ~SharedStatistics();
  SharedStatistics(const SharedStatistics&) = delete;
  SharedStatistics& operator=(const SharedStatistics&) = delete;

 private:
  ProcessSum* before_;
};

/// Whether a training step sees the rows of other processes too.
bool has_shared_statistics();

/// x [rows, features] -> the same shape: `norm` in training mode with the statistics of all
/// processes. Call it only if there are SharedStatistics.
at::Tensor shared_batch_norm(const at::Tensor& x, torch::nn::BatchNorm1dImpl& norm);

/// x [rows, columns] -> [1, columns], the mean of a training step, of all processes if there are
/// SharedStatistics. Not differentiable then.
at::Tensor mean_of_rows(const at::Tensor& x);

}  // namespace flash::models
