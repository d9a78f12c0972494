#pragma once
// The operator under the names of the integration guide: a config and an object that applies it.

#include <flash_attention/ops.h>

#include <cstdint>
#include <optional>

namespace flash {

/// Options of `FlashAttention`. An aggregate: name the fields that differ from their defaults.
///
///     flash::FlashAttention flash({.block_size = 64, .causal = true});
struct FlashAttentionConfig {
  /// Keys per online-softmax step, at least 1.
  int64_t block_size = 64;
  /// Factor on the scores. None means 1/sqrt(D).
  std::optional<double> scale = std::nullopt;
  /// A query attends the keys up to its own position; the queries are at the last positions
  /// (bottom-right alignment).
  bool causal = false;
  /// False forces the scalar kernels.
  bool use_simd = true;
  /// Probability in [0, 1] of dropping an attention weight.
  double dropout = 0.0;
};

/// `flash::attention` with fixed options. Immutable, so that threads can share an object.
class FLASH_API FlashAttention {
 public:
  explicit FlashAttention(FlashAttentionConfig config = {});

  /// Attention of query [B, L, D] or [B, H, L, D] over key [.., S, D] and value [.., S, Dv];
  /// returns [B, L, Dv] or [B, H, L, Dv]. Dtypes, derivatives and errors as for `flash::attention`,
  /// which also checks the config. There is no training mode: dropout is applied whenever it is
  /// above 0, so make a second object without it for evaluation.
  at::Tensor forward(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value) const;

  /// Bytes that `forward` allocates beyond its inputs and its output, for float64 query and key
  /// [batch, seq_len, d_k] and value [batch, seq_len, d_v]: two statistics per row, and scratch for
  /// each of the threads that are active now. See `flash::attention_memory` for other dtypes and
  /// shapes.
  int64_t memory_usage(int64_t seq_len, int64_t d_k, int64_t d_v, int64_t batch) const;

  /// The bytes of the float64 score matrices of standard attention, batch * seq_len^2 * 8, divided
  /// by `memory_usage(seq_len, d_k, d_v, batch)`.
  double memory_savings_ratio(int64_t seq_len, int64_t d_k = 64, int64_t d_v = 64,
                              int64_t batch = 1) const;

  const FlashAttentionConfig& config() const { return config_; }

 private:
  FlashAttentionConfig config_;
};

}  // namespace flash
