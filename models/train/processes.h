#pragma once
// The processes of one training, which torchrun starts: each computes a share of every batch.

#include <ATen/core/Tensor.h>

#include <memory>
#include <string>

#include "layers/common/batch_statistics.h"

namespace flash::models {

/// A sum over the processes that is under way.
class PendingSum {
 public:
  virtual ~PendingSum() = default;
  /// Returns once the tensor holds the sum.
  virtual void wait() = 0;
};

/// One process, or a group of them. Each must make the same calls in the same order. Throws
/// c10::Error, on each, if another process ends or does not answer within the group's timeout.
class Processes : public ProcessSum {
 public:
  virtual int64_t count() const = 0;
  /// From 0. The first one reports, and writes all files.
  virtual int64_t rank() const = 0;
  /// Replaces `tensor`, which must be contiguous, by the sum over all processes.
  virtual std::unique_ptr<PendingSum> start_sum(const at::Tensor& tensor) = 0;

  bool alone() const { return count() == 1; }
  bool first() const { return rank() == 0; }
  at::Tensor sum(const at::Tensor& tensor) override;
  /// Whether `flag` is set on any process.
  bool any(bool flag);

  /// Whether there are enough indices for every process to have a share.
  bool divides(const at::Tensor& indices) const;
  /// The indices of a step that this process computes: a share, or on every process all of them.
  at::Tensor share(const at::Tensor& indices) const;
  /// What the mean over `share(indices)` counts in that over `indices`.
  double weight(const at::Tensor& indices) const;

  /// Throws c10::ValueError on every process if `text` is not the same on all; `what` names it.
  void check_same(const std::string& text, const char* what);
};

/// Lets no process wait for one that could not start: unless agree() was called, its destructor
/// tells the others.
class StartTogether {
 public:
  explicit StartTogether(Processes& processes) : processes_(processes) {}
  ~StartTogether();
  StartTogether(const StartTogether&) = delete;
  StartTogether& operator=(const StartTogether&) = delete;

  /// Throws c10::Error if another process could not start.
  void agree();

 private:
  Processes& processes_;
  bool agreed_ = false;
};

/// This process alone.
std::unique_ptr<Processes> single_process();

/// The group of torch.distributed with this name.
std::unique_ptr<Processes> processes_of(const std::string& group);

}  // namespace flash::models
