#pragma once
// Running sums over time of rows of `width` elements.

#include "csrc/generic/exp.h"
#include "csrc/generic/lanes.h"

namespace flash {
namespace {

/// Calls f.operator()<vecs>(c, lanes) for columns c, c + 1, …: kVecs whole vectors at a time, then
/// fewer. Several vectors, because one chain of additions would leave the adders idle; many,
/// because rows a power of two apart share few cache sets and should be fetched once.
template <class V, int kVecs, class F>
[[gnu::always_inline]] inline void for_lane_groups(int64_t columns, F&& f, int64_t c = 0) {
  for (; c + kVecs * V::kWidth <= columns; c += kVecs * V::kWidth) {
    f.template operator()<kVecs>(c, AllLanes<V>{});
  }
  if constexpr (kVecs > 1) {
    for_lane_groups<V, kVecs / 2>(columns, f, c);
  } else if constexpr (V::kWidth > 1) {
    if (c < columns) f.template operator()<1>(c, FirstLanes<V>(columns - c));
  }
}
constexpr int kRunningVecs = 8;

/// sum[t] = value[0] + … + value[t]. Rows of `value` are `step` apart, those of `sum` contiguous.
template <class V>
void running_sum(const typename V::Scalar* value, int64_t step, typename V::Scalar* sum,
                 int64_t length, int64_t width) {
  for_lane_groups<V, kRunningVecs>(width, [&]<int kVecs>(int64_t c, auto lanes) {
    typename V::Reg total[kVecs];
    each<kVecs>([&](int v) { total[v] = V::zero(); });
    for (int64_t t = 0; t < length; ++t) {
      const auto* const from = value + t * step + c;
      auto* const to = sum + t * width + c;
      each<kVecs>([&](int v) {
        total[v] = V::add(total[v], lanes.load(from + v * V::kWidth));
        lanes.store(to + v * V::kWidth, total[v]);
      });
    }
  });
}

/// value_gradient[t] = sum of gradient[s] over s >= t with skipped[s] false. Rows of value_gradient
/// are `step` apart.
template <class V>
void running_sum_backward(const typename V::Scalar* gradient, const bool* skipped,
                          typename V::Scalar* value_gradient, int64_t step, int64_t length,
                          int64_t width) {
  for_lane_groups<V, kRunningVecs>(width, [&]<int kVecs>(int64_t c, auto lanes) {
    typename V::Reg total[kVecs];
    each<kVecs>([&](int v) { total[v] = V::zero(); });
    for (int64_t t = length - 1; t >= 0; --t) {
      const auto* const from = gradient + t * width + c;
      auto* const to = value_gradient + t * step + c;
      const bool adds = !skipped[t];
      each<kVecs>([&](int v) {
        if (adds) total[v] = V::add(total[v], lanes.load(from + v * V::kWidth));
        lanes.store(to + v * V::kWidth, total[v]);
      });
    }
  });
}

}  // namespace
}  // namespace flash
