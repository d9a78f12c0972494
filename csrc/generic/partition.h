#pragma once
// How a backward pass is split into units that never write to the same memory at the same time.
//
// A unit is (owner, query chunk). An owner is a set of (batch, head) pairs that share a gradient:
// the query heads of one key or value head, and all heads and batch elements that share a broadcast
// bias. Within an owner, queries and keys are split into `chunks` chunks each, and step t pairs
// query chunk a with key chunk (a + t) mod chunks (a Latin square). Within a step, no two units
// touch the same rows of dQ, dK or dV; over the steps, each sum is formed in a fixed order. So one
// long sequence uses every core without per-thread copies of gradients, and results are
// bit-identical for any number of threads.

#include <cstdint>

#include "csrc/generic/key_ranges.h"
#include "csrc/generic/product.h"
#include "csrc/params.h"

namespace flash {
namespace {

inline int64_t greatest_common_divisor(int64_t a, int64_t b) {
  while (b != 0) {
    const int64_t rest = a % b;
    a = b;
    b = rest;
  }
  return a;
}

class Partition {
 public:
  /// Query chunks are multiples of `tile`. If there are several, none is smaller than `block`.
  Partition(const BackwardParams& p, int64_t tile, int64_t block) : shape_(p.shape) {
    head_groups_ = greatest_common_divisor(shape_.key_heads, shape_.value_heads);
    batch_groups_ = shape_.batch;
    const int64_t* bias = p.grad_bias_strides;
    if (p.grad_bias != nullptr) {
      if (bias[0] == 0) batch_groups_ = min_of(batch_groups_, 1);
      if (bias[1] == 0) head_groups_ = min_of(head_groups_, 1);
    }
    const int64_t owners = batch_groups_ * head_groups_;
    // Every chunk writes to a bias with one element per head, so such chunks must not run in
    // parallel.
    const bool one_writer = p.grad_bias != nullptr && bias[2] == 0 && bias[3] == 0;
    // A power of two, for `chunk_of`. With 8 units, or 16 if chunks are long, the steps cost less
    // than idle cores would.
    constexpr int64_t kMinKeys = 32;
    const auto smallest = [&] { return owners * chunks_ < 8 ? block : 2 * block; };
    while (!one_writer && owners * chunks_ < 16 && 2 * chunks_ * smallest() <= shape_.queries &&
           2 * chunks_ * kMinKeys <= shape_.keys) {
      chunks_ *= 2;
    }
    query_chunk_ = round_up(ceil_div(shape_.queries, chunks_), tile);
    key_chunk_ = round_up(ceil_div(shape_.keys, chunks_), 8);
  }

  int64_t units() const { return batch_groups_ * head_groups_ * chunks_; }
  int64_t steps() const { return chunks_; }

  /// The batch elements and the query, key and value heads of the unit's owner.
  Range batches(int64_t unit) const {
    return part(shape_.batch, batch_groups_, unit / chunks_ / head_groups_);
  }
  Range heads(int64_t unit) const { return head_part(shape_.heads, unit); }
  Range key_heads(int64_t unit) const { return head_part(shape_.key_heads, unit); }
  Range value_heads(int64_t unit) const { return head_part(shape_.value_heads, unit); }

  /// The query chunk of a unit: its index within the owner with the bits reversed, counted from the
  /// end. A causal step has work only in the last few chunks, and bit reversal spreads these evenly
  /// over contiguous ranges of units.
  int64_t chunk_of(int64_t unit) const {
    int64_t from_end = 0;
    int64_t rest = unit % chunks_;
    for (int64_t bit = 1; bit < chunks_; bit *= 2, rest /= 2) from_end = 2 * from_end + rest % 2;
    return chunks_ - 1 - from_end;
  }
  Range queries(int64_t unit) const { return chunk(shape_.queries, query_chunk_, chunk_of(unit)); }
  Range keys(int64_t unit, int64_t step) const {
    return chunk(shape_.keys, key_chunk_, (chunk_of(unit) + step) % chunks_);
  }

 private:
  static Range part(int64_t total, int64_t parts, int64_t index) {
    return {total / parts * index, total / parts * (index + 1)};
  }
  Range head_part(int64_t heads, int64_t unit) const {
    return part(heads, head_groups_, unit / chunks_ % head_groups_);
  }
  static Range chunk(int64_t total, int64_t size, int64_t index) {
    return {min_of(size * index, total), min_of(size * (index + 1), total)};
  }

  Shape shape_;
  int64_t batch_groups_;
  int64_t head_groups_;
  int64_t chunks_ = 1;
  int64_t query_chunk_;
  int64_t key_chunk_;
};

}  // namespace
}  // namespace flash
