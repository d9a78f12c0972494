#pragma once
// The statistics of the rows of a tile that the backward needs: row max, inverse sum and delta.

#include <cstdint>
#include <limits>

#include "csrc/generic/exp.h"
#include "csrc/generic/score_stage.h"
#include "csrc/generic/tiles.h"
#include "csrc/params.h"

namespace flash {
namespace {

/// The statistics of the rows of a tile, one element per lane.
template <class T>
struct RowStatistics {
  T* row_max;      ///< 0 if it is -inf
  T* inverse_sum;  ///< 0 if the sum is 0
  T* delta;        ///< rowsum(dO o O) - dlse
};

// The output of a row that attends no key is constant, so NaN in its dO must not propagate.
template <class V>
[[gnu::noinline]] void zero_empty_rows(const ScoreStage<V>& stage, int64_t count,
                                       typename V::Scalar* delta) {
  for (int64_t i = 0; i < count; ++i) {
    if (!stage.attends_any(i)) delta[i] = 0;
  }
}

/// Reads the statistics of `count` rows from `row` on, and stores the gradients of their sinks.
/// `rows.delta` must hold rowsum(dO o O). Returns whether all of them are finite but for delta.
template <class V>
bool read_statistics(const BackwardParams& p, const ScoreStage<V>& stage, int64_t row,
                     int64_t count, int64_t lanes, bool zeroes_empty,
                     RowStatistics<typename V::Scalar> rows) {
  using T = typename V::Scalar;
  using Reg = typename V::Reg;
  if (zeroes_empty) zero_empty_rows(stage, count, rows.delta);
  const Reg minus_inf = V::broadcast(-std::numeric_limits<T>::infinity());
  bool finite = true;
  for (int64_t lane = 0; lane < lanes; lane += V::kWidth) {
    const typename V::Mask mask = V::first(max_of(0, min_of(count - lane, V::kWidth)));
    const auto read = [&](const void* of_rows) {
      return V::load(static_cast<const T*>(of_rows) + row + lane, mask);
    };
    const Reg max = read(p.row_max), sum = read(p.row_sum);
    Reg delta = V::load(rows.delta + lane);
    if (p.grad_lse != nullptr) delta = V::sub(delta, read(p.grad_lse));
    const Reg base = V::if_equal(max, minus_inf, V::zero(), max);
    const Reg inverse = V::if_equal(sum, V::zero(), V::zero(), V::div(V::broadcast(T(1)), sum));
    finite &= is_zero<V>(V::fma(base, V::zero(), V::mul(inverse, V::zero())));
    V::store(rows.row_max + lane, base);
    V::store(rows.inverse_sum + lane, inverse);
    V::store(rows.delta + lane, delta);
    if (p.grad_sink_rows != nullptr) {
      // The sink acts as a key with dP = 0.
      Reg weight[1] = {V::sub(V::broadcast(stage.sink()), base)};
      exp<V>(weight);
      const Reg grad = V::mul(V::mul(weight[0], inverse), V::sub(V::zero(), delta));
      V::store(static_cast<T*>(p.grad_sink_rows) + row + lane,
               V::if_equal(sum, V::zero(), V::zero(), grad), mask);
    }
  }
  return finite;
}

}  // namespace
}  // namespace flash
