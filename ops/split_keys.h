#pragma once
// Private to ops/: few queries over many keys, as in decoding. There are too few tiles of queries
// for the threads, so the keys are cut into parts; each gives an output of its own with its largest
// score and its sum, of which the whole is a weighted mean ("Flash-Decoding": Dao, Haziza, Massa,
// Sizov, 2023).
//
// Where the cuts are depends on the lengths alone: neither on the number of threads nor on the size
// of the batch, so that the bits do not, either.

#include <ATen/core/ScalarType.h>

#include <cstdint>
#include <vector>

#include "csrc/kernels.h"

namespace flash {

class SplitKeys {
 public:
  /// Few queries, many keys, no dropout, whose mask counts keys from the first one.
  static bool fits(const ForwardParams& params);

  /// `dtype`: what the kernels compute in.
  SplitKeys(const TypedKernels& kernels, const ForwardParams& params, at::ScalarType dtype);

  /// Bytes that `run` allocates.
  int64_t bytes() const;

  /// As `kernels.forward` over all units.
  void run() const;

 private:
  struct Memory;

  int64_t parts() const;
  int64_t results() const;
  int64_t result_bytes() const;
  int64_t position_count() const;
  void fill_positions(int64_t* positions) const;
  ForwardParams part_params(int64_t batch, int64_t first, int64_t count,
                            const Memory& memory) const;
  template <class T>
  void merge(const Memory& memory) const;
  template <class T>
  void store(const std::vector<T>& row, int64_t at) const;

  const TypedKernels& kernels_;
  ForwardParams params_;
  at::ScalarType dtype_;
  int64_t size_;                     // bytes of a number
  int64_t stored_size_;              // and of one of query, key and value
  int64_t whole_parts_;              // parts of kKeysPerPart keys; the last one may be shorter
  WorkPlan whole_plan_, last_plan_;  // of one batch element
  int64_t scratch_bytes_;
};

}  // namespace flash
