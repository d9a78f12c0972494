#pragma once
// Autoformer's auto-correlation (Wu et al., "Autoformer", arXiv:2106.13008, section 3.2): a
// weighted sum of the values, shifted by the delays at which queries and keys correlate best.

#include <flash_attention/export.h>

#include "layers/common/attention_mechanism.h"

namespace flash::models {

/// The correlation of query and key at each delay, averaged over heads and channels, selects
/// int(factor * ln T) delays. The result is the sum of the values shifted by these delays, weighted
/// by the softmax of their correlations. Reproduced from neuralforecast, because results depend on
/// it:
///  - Training selects the delays by the batch's mean correlation, evaluation for each series.
///  - Keys and values shorter than the queries are padded with zeros, longer ones are truncated.
///  - For an odd T the inverse transform has length T - 1, so there are T - 1 delays, and the
///    correlations are those of a slightly stretched series.
///
/// Needs no loops over heads, channels or delays, and two products with [B, T, D] instead of four.
/// Because heads and channels are averaged, the correlation of W_q x and W_k y equals that of x and
/// W_q^T W_k y. Because the sum over delays commutes with linear maps, W_v and W_o become one map
/// that is applied to the sum.
class AutoCorrelation : public AttentionMechanism {
 public:
  explicit AutoCorrelation(int64_t factor) : factor_(factor) {}

  at::Tensor forward(const AttentionProjections& projections, const at::Tensor& x,
                     const at::Tensor& memory, bool training) const override;

 private:
  int64_t factor_;
};

/// int(factor * ln(length)), the number of selected delays.
int64_t delay_count(int64_t factor, int64_t length);

/// Selected delays and their correlations.
struct ChosenDelays {
  at::Tensor correlations;  ///< [B, k], differentiable in query and key
  at::Tensor delays;        ///< int64 [B, k], or [1, k] where `shared`
};

/// query and key [B, T, C]. The correlation is the sum over time and channels, times `scale`. With
/// `shared`, the batch's mean correlation selects the delays.
FLASH_API ChosenDelays choose_delays(const at::Tensor& query, const at::Tensor& key, double scale,
                                     int64_t count, bool shared);

}  // namespace flash::models
