#pragma once
// Autoformer's mechanism in the place of attention (Wu et al., "Autoformer", arXiv:2106.13008,
// section 3.2): a sum of the values at the delays at which queries and keys correlate best.

#include <flash_attention/export.h>

#include "layers/decomposition/inner_mechanism.h"

namespace flash::models {

/// The correlation of query and key at each delay, averaged over heads and channels, chooses
/// int(factor * ln T) delays; the values, moved by these, are added with the softmax of their
/// correlations as weights. Kept of neuralforecast's, because numbers depend on it:
///  - In training the delays are chosen from the batch's mean, in evaluation for each series.
///  - A key and a value shorter than the query are continued with zeros, longer ones are cut.
///  - With an odd T the correlation comes from a transform back of length T - 1, so that there are
///    T - 1 delays, and the numbers are those of a series stretched by a little.
///
/// Done without loops over heads, channels or delays, and with two products of [B, T, D] instead of
/// four. As heads and channels are averaged, the correlation of W_q x and W_k y is that of x and
/// W_q^T W_k y; and as a sum over delays commutes with a linear map, W_v and W_o become one map of
/// the sum.
class AutoCorrelationImpl : public InnerMechanism {
 public:
  explicit AutoCorrelationImpl(int64_t factor) : factor_(factor) {}

  at::Tensor forward(AttentionProjections& projections, const at::Tensor& x,
                     const at::Tensor& memory) override;

 private:
  int64_t factor_;
};

/// How many delays are chosen for a query of this length.
int64_t delay_count(int64_t factor, int64_t length);

/// The correlations chosen of query and key, and their delays.
struct ChosenDelays {
  at::Tensor correlations;  ///< [B, k], differentiable in query and key
  at::Tensor delays;        ///< int64 [B, k], or [1, k] where `shared`
};

/// query and key [B, T, C]. The correlation is the sum over time and channels, times `scale`;
/// `shared`: chosen by the batch's mean.
FLASH_API ChosenDelays choose_delays(const at::Tensor& query, const at::Tensor& key, double scale,
                                     int64_t count, bool shared);

}  // namespace flash::models
