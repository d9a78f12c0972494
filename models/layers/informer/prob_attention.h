#pragma once
// ProbSparse attention of Informer (Zhou et al., arXiv:2012.07436, section 3.1), as neuralforecast
// 3.3.0 computes it.

#include "layers/common/attention_mechanism.h"

namespace flash::models {

/// Attention of the few queries whose scores differ most; the rest get the mean of the values, or
/// under `causal` the sum of the values up to their own.
///
/// How much a query's scores differ is measured on U = factor ceil(ln S) keys, drawn anew for each
/// query (one table for all batches and heads) from torch's CPU generator, in eval mode too: seed
/// it to repeat an output. u = factor ceil(ln L) queries of each batch and head are selected; where
/// that is all of them the result is full attention.
///
/// Kept from the original: attention weights are never dropped, the mean of the sampled scores is
/// taken over S instead of U, and [B, H, L, d] is read as [B, L, H d] without a transposition,
/// which mixes times and heads. Not kept: with one head the original selects the union of what all
/// samples of the batch select; here every sample has its own.
class FLASH_API ProbAttention : public AttentionMechanism {
 public:
  ProbAttention(int64_t factor, bool causal, const ModelConfig& config)
      : factor_(factor), causal_(causal), config_(config) {}

  at::Tensor attend(const AttentionProjections& projections, const at::Tensor& x,
                    const at::Tensor& memory, bool training) const override;

 private:
  /// factor ceil(ln length), at most length.
  int64_t count(int64_t length) const;
  /// Attention of queries at `positions`, or of all where that is undefined.
  at::Tensor attend_at(const at::Tensor& positions, const at::Tensor& query, const at::Tensor& key,
                       const at::Tensor& value) const;

  int64_t factor_;
  bool causal_;
  ModelConfig config_;
};

}  // namespace flash::models
