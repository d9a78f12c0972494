#pragma once
// The weighted sum of a series over circular delays, and the correlation of two series at circular
// delays. Each is the derivative of the other. Lanes are channels.

#include <cstdint>

#include "csrc/generic/product.h"
#include "csrc/kernels.h"

namespace flash {
namespace {

constexpr int64_t kAggregationRows = 32;  ///< times of one series in a unit of work
constexpr int kAggregationVecs = 8;       ///< vectors of channels held in registers
constexpr int kCorrelationDelays = 4;     ///< delays that share each load of the key

inline WorkPlan aggregation_plan(const AggregationParams& p) {
  return {p.batch * ceil_div(p.times, kAggregationRows), 1,
          2 * kAggregationRows * p.channels * p.delays};
}

inline WorkPlan correlation_plan(const CorrelationParams& p) {
  return {p.batch * ceil_div(p.delays, kCorrelationDelays), 1,
          2 * kCorrelationDelays * p.times * p.channels};
}

/// Row (t + delay) mod times, for 0 <= t, delay < times.
inline int64_t delayed(int64_t t, int64_t delay, int64_t times) {
  const int64_t row = t + delay;
  return row >= times ? row - times : row;
}

/// kVecs vectors of columns of one row of the sum. With kTail, the last vector is masked by `tail`.
template <class V, int kVecs, bool kTail>
inline void aggregate_row(const AggregationParams& p, int64_t t, const int64_t* delay,
                          const typename V::Scalar* weights, const typename V::Scalar* value,
                          typename V::Scalar* out, typename V::Mask tail) {
  constexpr int W = V::kWidth;
  typename V::Reg sum[kVecs];
#pragma GCC unroll 8
  for (int v = 0; v < kVecs; ++v) sum[v] = V::zero();
  for (int64_t i = 0; i < p.delays; ++i) {
    const auto weight = V::broadcast(weights + i);
    const typename V::Scalar* row = value + delayed(t, delay[i], p.times) * p.value.time_stride;
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) {
      const bool masked = kTail && v == kVecs - 1;
      sum[v] = V::fma(weight, masked ? V::load(row + v * W, tail) : V::load(row + v * W), sum[v]);
    }
  }
#pragma GCC unroll 8
  for (int v = 0; v < kVecs; ++v) {
    if (kTail && v == kVecs - 1) {
      V::store(out + v * W, sum[v], tail);
    } else {
      V::store(out + v * W, sum[v]);
    }
  }
}

template <class V>
void aggregation(const AggregationParams& p, int64_t unit_begin, int64_t unit_end) {
  using T = typename V::Scalar;
  constexpr int64_t kColumns = kAggregationVecs * V::kWidth;
  const int64_t blocks = ceil_div(p.times, kAggregationRows);
  for (int64_t unit = unit_begin; unit < unit_end; ++unit) {
    const int64_t batch = unit / blocks;
    const int64_t begin = unit % blocks * kAggregationRows;
    const int64_t end = min_of(begin + kAggregationRows, p.times);
    const int64_t* delay = p.delay.data + batch * p.delay.batch_stride;
    const T* weights = static_cast<const T*>(p.weights) + batch * p.delays;
    const T* value = static_cast<const T*>(p.value.data) + batch * p.value.batch_stride;
    T* out = static_cast<T*>(p.out.data) + batch * p.out.batch_stride;
    for (int64_t c = 0; c < p.channels; c += kColumns) {
      const int64_t columns = min_of(kColumns, p.channels - c);
      const int64_t remainder = columns % V::kWidth;
      const auto tail = V::first(remainder);
      with_vecs<kAggregationVecs>(static_cast<int>(ceil_div(columns, V::kWidth)), [&]<int kVecs>() {
        for (int64_t t = begin; t < end; ++t) {
          T* row = out + t * p.out.time_stride + c;
          if (remainder == 0) {
            aggregate_row<V, kVecs, false>(p, t, delay, weights, value + c, row, tail);
          } else {
            aggregate_row<V, kVecs, true>(p, t, delay, weights, value + c, row, tail);
          }
        }
      });
    }
  }
}

/// Adds the products of times [begin, end) at kDelays delays to total[0 … kDelays - 1].
template <class V, int kDelays>
inline void correlate_rows(const CorrelationParams& p, int64_t begin, int64_t end,
                           const int64_t* delay, const typename V::Scalar* query,
                           const typename V::Scalar* key, double* total) {
  using T = typename V::Scalar;
  constexpr int W = V::kWidth;
  // Two accumulators per delay, to hide the latency of the multiply-add.
  typename V::Reg sum[kDelays][2];
  clear<V, kDelays, 2>(sum);
  for (int64_t t = begin; t < end; ++t) {
    const T* fixed = key + t * p.key.time_stride;
    const T* moved[kDelays];
    for (int i = 0; i < kDelays; ++i) {
      moved[i] = query + delayed(t, delay[i], p.times) * p.query.time_stride;
    }
    int64_t c = 0;
    for (; c + 2 * W <= p.channels; c += 2 * W) {
      const auto first = V::load(fixed + c), second = V::load(fixed + c + W);
#pragma GCC unroll 4
      for (int i = 0; i < kDelays; ++i) {
        sum[i][0] = V::fma(V::load(moved[i] + c), first, sum[i][0]);
        sum[i][1] = V::fma(V::load(moved[i] + c + W), second, sum[i][1]);
      }
    }
    for (; c < p.channels; c += W) {
      if (c + W <= p.channels) {
        const auto row = V::load(fixed + c);
#pragma GCC unroll 4
        for (int i = 0; i < kDelays; ++i) {
          sum[i][0] = V::fma(V::load(moved[i] + c), row, sum[i][0]);
        }
      } else {
        const auto tail = V::first(p.channels - c);
        const auto row = V::load(fixed + c, tail);
#pragma GCC unroll 4
        for (int i = 0; i < kDelays; ++i) {
          sum[i][0] = V::fma(V::load(moved[i] + c, tail), row, sum[i][0]);
        }
      }
    }
  }
  for (int i = 0; i < kDelays; ++i) {
    alignas(64) T lanes[W];
    V::store(lanes, V::add(sum[i][0], sum[i][1]));
    for (int l = 0; l < W; ++l) total[i] += static_cast<double>(lanes[l]);
  }
}

template <class V>
void correlation(const CorrelationParams& p, int64_t unit_begin, int64_t unit_end) {
  using T = typename V::Scalar;
  const int64_t groups = ceil_div(p.delays, kCorrelationDelays);
  // Partial sums in T are short; their total is in double.
  const int64_t terms = max_of(1, ceil_div(p.channels, 2 * V::kWidth));
  const int64_t rows = max_of(1, V::kLongestChain / terms);
  for (int64_t unit = unit_begin; unit < unit_end; ++unit) {
    const int64_t batch = unit / groups;
    const int64_t first = unit % groups * kCorrelationDelays;
    const int64_t count = min_of(kCorrelationDelays, p.delays - first);
    const int64_t* delay = p.delay.data + batch * p.delay.batch_stride + first;
    const T* query = static_cast<const T*>(p.query.data) + batch * p.query.batch_stride;
    const T* key = static_cast<const T*>(p.key.data) + batch * p.key.batch_stride;
    double total[kCorrelationDelays] = {};
    with_vecs<kCorrelationDelays>(static_cast<int>(count), [&]<int kDelays>() {
      for (int64_t t = 0; t < p.times; t += rows) {
        correlate_rows<V, kDelays>(p, t, min_of(t + rows, p.times), delay, query, key, total);
      }
    });
    T* out = static_cast<T*>(p.out) + batch * p.delays + first;
    for (int64_t i = 0; i < count; ++i) out[i] = static_cast<T>(total[i] * p.scale);
  }
}

}  // namespace
}  // namespace flash
