#pragma once
// Private to ops/: Flash-Decoding, for calls with too few queries to occupy the threads. The keys
// are split into parts, each gives an output with its own row max and row sum, and the result is
// their weighted mean. Source: Dao, Haziza, Massa, Sizov, "Flash-Decoding for long-context
// inference", 2023. csrc/decode_choice.h says which calls.

#include <ATen/core/ScalarType.h>

#include <cstdint>
#include <vector>

#include "csrc/decode_choice.h"
#include "csrc/kernels.h"

namespace flash {

class SplitKv {
 public:
  /// Requires params for which `splits_keys` is true. `dtype`: what the kernels compute in.
  SplitKv(const TypedKernels& kernels, const ForwardParams& params, at::ScalarType dtype);

  /// Bytes that `run` allocates.
  int64_t bytes() const;

  /// Computes what `kernels.forward` computes over all units.
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
  int64_t size_;                     // bytes per element of `dtype`
  int64_t stored_size_;              // bytes per element of query, key and value
  int64_t whole_parts_;              // parts of kDecodeKeys keys; a shorter one may follow
  WorkPlan whole_plan_, last_plan_;  // of one batch element
  int64_t scratch_bytes_;
};

}  // namespace flash
