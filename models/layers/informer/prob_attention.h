#pragma once
// ProbSparse attention of Informer (Zhou et al., arXiv:2012.07436, section 3.1), as neuralforecast
// 3.3.0 computes it.

#include "layers/common/attention_mechanism.h"

namespace flash::models {

/// Attention for the few queries whose scores vary most. The other queries get the mean of the
/// values or, if `causal`, the sum of the values up to their own position.
///
/// The variation of a query's scores is measured on U = factor * ceil(ln S) random keys. Each query
/// has its own sample, the same for all batch elements and heads, drawn in every forward, in eval
/// mode too, from torch's CPU generator or SampledBy's: seed it to reproduce an output. Of each
/// batch element and head, u = factor * ceil(ln L) queries are selected; if that is all of them,
/// the result is full attention.
///
/// Reproduced from neuralforecast: attention weights are never dropped, the mean of the sampled
/// scores is taken over S instead of U, and [B, H, L, d] is read as [B, L, H d] without a
/// transposition, which mixes times and heads. Not reproduced: with one head, neuralforecast uses
/// the union of the queries selected by all samples of the batch; here every sample has its own.
class FLASH_API ProbAttention : public AttentionMechanism {
 public:
  ProbAttention(int64_t factor, bool causal, const ModelConfig& config)
      : factor_(factor), causal_(causal), config_(config) {}

  at::Tensor forward(const AttentionProjections& projections, const at::Tensor& x,
                     const at::Tensor& memory, bool training) const override;

 private:
  /// factor * ceil(ln(length)), at most length.
  int64_t count(int64_t length) const;
  /// Attention of the queries at `positions`; undefined `positions` mean all.
  at::Tensor attend_at(const at::Tensor& positions, const at::Tensor& query, const at::Tensor& key,
                       const at::Tensor& value) const;

  int64_t factor_;
  bool causal_;
  ModelConfig config_;
};

}  // namespace flash::models
