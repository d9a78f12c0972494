#pragma once
// A key-value cache, for models that generate one position after another.

#include <ATen/core/Tensor.h>
#include <flash_attention/export.h>
#include <flash_attention/ops.h>

#include <cstdint>
#include <optional>

namespace flash {

/// Keys and values of up to `capacity` positions of each sequence of a batch. The memory is
/// allocated once and filled in place. A copy shares it.
///
///     flash::KeyValueCache cache(batch, key_heads, /*capacity=*/4096, head_dim);
///     cache.append(key, value);                 // [B, Hk, n, D] each, for n new positions
///     const auto out = cache.attention(query);  // [B, H, n, D], for the queries of the same
///
/// Not thread-safe. Nothing is recorded for autograd: keys and values that require a gradient throw
/// c10::NotImplementedError unless gradients are disabled.
class FLASH_API KeyValueCache {
 public:
  /// value_dim is head_dim unless given, and value_heads is key_heads. dtype is one that
  /// `attention` takes. Throws c10::ValueError or c10::TypeError; the message says what was
  /// expected.
  KeyValueCache(int64_t batch, int64_t key_heads, int64_t capacity, int64_t head_dim,
                std::optional<int64_t> value_dim = {}, std::optional<int64_t> value_heads = {},
                at::ScalarType dtype = at::kFloat);

  /// Appends n positions to every sequence: key [B, Hk, n, D], value [B, Hv, n, Dv], of the dtype
  /// of the cache. With `counts`, int64 [B], only the first counts[b] of them are appended to
  /// sequence b. Throws c10::ValueError, and writes nothing, if a sequence would exceed the
  /// capacity.
  void append(const at::Tensor& key, const at::Tensor& value,
              const std::optional<at::Tensor>& counts = {});

  /// flash::attention of query [B, H, L, D] over the cache; returns [B, H, L, Dv]. The queries are
  /// at the last L positions of their sequence, and attend the positions up to their own: append
  /// those first. With `counts` as in `append`, the first counts[b] queries are at the last
  /// counts[b] positions of sequence b, and the other rows of the result are unspecified. `options`
  /// as for flash::attention; causal is always on. Throws c10::ValueError if query_positions are
  /// given.
  at::Tensor attention(const at::Tensor& query, const AttentionOptions& options = {},
                       const std::optional<at::Tensor>& counts = {}) const;

  /// Drops all but the first `length` positions of every sequence that is longer.
  void truncate(int64_t length);

  /// The length of each sequence, int64 [B]; a copy.
  at::Tensor lengths() const;
  int64_t capacity() const { return key_.size(2); }
  /// Views, [B, Hk, longest, D] and [B, Hv, longest, Dv]. Rows past the end of a sequence are
  /// unspecified.
  at::Tensor key() const;
  at::Tensor value() const;

 private:
  int64_t longest() const;

  at::Tensor key_, value_;  // [B, heads, capacity, width]
  at::Tensor lengths_;
};

}  // namespace flash
