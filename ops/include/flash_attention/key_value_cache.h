#pragma once
// Keys and values of the positions so far, for models that produce one position after another.

#include <ATen/core/Tensor.h>
#include <flash_attention/export.h>
#include <flash_attention/ops.h>

#include <cstdint>
#include <optional>

namespace flash {

/// Room for `capacity` positions of each sequence of a batch, allocated once and filled in place.
/// A copy shares the memory.
///
///     flash::KeyValueCache cache(batch, key_heads, /*capacity=*/4096, head_dim);
///     cache.append(key, value);               // [B, Hk, n, D] and [B, Hk, n, Dv] of n new
///     positions const auto out = cache.attention(query);  // [B, H, n, Dv], their queries
///
/// Not thread-safe. Nothing is recorded for autograd: keys and values that require a gradient are
/// refused while gradients are recorded.
class FLASH_API KeyValueCache {
 public:
  /// value_dim: that of the keys unless given; value_heads likewise. dtype: one that `attention`
  /// takes. Throws c10::ValueError or c10::TypeError naming what was expected.
  KeyValueCache(int64_t batch, int64_t key_heads, int64_t capacity, int64_t head_dim,
                std::optional<int64_t> value_dim = {}, std::optional<int64_t> value_heads = {},
                at::ScalarType dtype = at::kFloat);

  /// Writes the next n positions of every sequence: key [B, Hk, n, D], value [B, Hv, n, Dv]. With
  /// `counts`, int64 [B], only the first counts[b] of them belong to sequence b.
  /// Throws c10::ValueError, and writes nothing, where one has no room for them.
  void append(const at::Tensor& key, const at::Tensor& value,
              const std::optional<at::Tensor>& counts = {});

  /// flash::attention of query [B, H, L, D] with what is in the cache. The queries are the last L
  /// positions of their sequence, and attend up to their own: append first. With `counts` as in
  /// `append`, the first counts[b] queries are; the rows of the others mean nothing.
  /// `options` as of flash::attention, but for causal, which is on, and query_positions, which are
  /// known. Throws c10::ValueError where these are given.
  at::Tensor attention(const at::Tensor& query, const AttentionOptions& options = {},
                       const std::optional<at::Tensor>& counts = {}) const;

  /// Forgets all but the first `length` positions of every sequence that has more.
  void truncate(int64_t length);

  /// Positions of each sequence, int64 [B]; a copy.
  at::Tensor lengths() const;
  int64_t capacity() const { return key_.size(2); }
  /// [B, Hk, longest, D] and [B, Hv, longest, Dv], views; rows past the length of a sequence hold
  /// anything.
  at::Tensor key() const;
  at::Tensor value() const;

 private:
  int64_t longest() const;

  at::Tensor key_, value_;  // [B, heads, capacity, width]
  at::Tensor lengths_;
};

}  // namespace flash
