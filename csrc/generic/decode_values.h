#pragma once
// Weighted sums of rows of values, for decoding.

#include <atomic>
#include <cstdint>
#include <utility>

#include "csrc/generic/decode_streams.h"
#include "csrc/generic/exp.h"
#include "csrc/generic/product.h"
#include "csrc/generic/stored_rows.h"
#include "csrc/generic/tiles.h"

namespace flash {
namespace {

/// Rows of one stream, and their weights.
template <class T, class Stored>
struct ValueStream {
  const T* weight;
  const Stored* row;
};

/// Calls f.operator()<vectors>(first column, columns) for up to kMax vectors of columns at a time.
template <class V, int kMax, class F>
void for_columns(int64_t width, F&& f) {
  constexpr int W = V::kWidth;
  for (int64_t c = 0; c < width; c += kMax * W) {
    const int64_t columns = min_of(kMax * W, width - c);
    with_vecs<kMax>(static_cast<int>(ceil_div(columns, W)),
                    [&]<int kColumns>() { f.template operator()<kColumns>(c, columns); });
  }
}

template <class V, bool kWhole>
typename V::Reg load_up_to(const typename V::Scalar* p, int64_t last) {
  return kWhole ? V::load(p) : load_first<V>(p, last);
}

/// out += sum. The last vector has `last` elements.
template <class V, int kColumns, bool kWhole>
[[gnu::always_inline]] inline void add_to(const typename V::Reg (&sum)[kColumns], int64_t last,
                                          typename V::Scalar* out) {
  constexpr int W = V::kWidth;
#pragma GCC unroll 16
  for (int v = 0; v < kColumns - 1; ++v)
    V::store(out + v * W, V::add(V::load(out + v * W), sum[v]));
  out += (kColumns - 1) * W;
  const typename V::Reg total = V::add(load_up_to<V, kWhole>(out, last), sum[kColumns - 1]);
  kWhole ? V::store(out, total) : store_first<V>(out, total, last);
}

/// out += sum of weights * rows, skipping the rows whose weights are marked as masked.
template <class V, class Stored>
void add_unmasked_values(ValueStream<typename V::Scalar, Stored> values, int64_t stride,
                         int64_t count, int64_t columns, typename V::Scalar* out) {
  using Reg = typename V::Reg;
  constexpr int kVecsAtOnce = 4, W = V::kWidth;
  for_columns<V, kVecsAtOnce>(columns, [&]<int kColumns>(int64_t c, int64_t width) {
    const int64_t last = width - (kColumns - 1) * W;
    const Stored* row = values.row + c;
    Reg sum[kColumns];
    each<kColumns>([&](int v) { sum[v] = V::zero(); });
    for (int64_t j = 0; j < count; ++j, row += stride) {
      const Reg weight = V::broadcast(values.weight + j);
      each<kColumns>([&](int v) {
        const bool whole = v < kColumns - 1 || last == W;
        const Reg value = whole ? V::load(row + v * W) : load_first<V>(row + v * W, last);
        sum[v] = V::fma_unless_minus_zero(weight, value, sum[v]);
      });
    }
    add_to<V, kColumns, false>(sum, last, out + c);
  });
}

/// out += sum of weights * rows, for `count` rows of kColumns vectors: `piece` of the first stream,
/// as many of the second, and so on. Unless `is_unmasked`, a sum that is not finite may come from
/// the 0 * NaN of a masked key: then out is left unchanged and the result is false.
///
/// The fences make the compiler load a row in memory order. It would otherwise start with the sums
/// that it spills, which makes reading from DRAM a fifth slower.
template <class V, int kColumns, bool kWhole, class Stored>
[[gnu::always_inline]] inline bool add_values(ValueStream<typename V::Scalar, Stored> values,
                                              ValueStream<typename V::Scalar, Stored> others,
                                              int64_t stride, int64_t piece, int64_t count,
                                              int64_t columns, typename V::Scalar* out,
                                              bool is_unmasked) {
  using Reg = typename V::Reg;
  constexpr int W = V::kWidth;
  const int64_t last = columns - (kColumns - 1) * W;
  constexpr int kWholeColumns = kWhole ? kColumns : kColumns - 1;
  constexpr int kPaired = kLoadsPairs<Stored> ? kWholeColumns / 2 * 2 : 0;
  Reg sum[kColumns];
#pragma GCC unroll 16
  for (int v = 0; v < kColumns; ++v) sum[v] = V::zero();
  for (int64_t left = count; left > 0; left -= piece) {
    for (int64_t j = 0; j < piece; ++j, values.row += stride) {
      const Stored* const row = values.row;
      const Reg weight = V::broadcast(values.weight++);
      if constexpr (kPaired > 0) {
#pragma GCC unroll 8
        for (int v = 0; v < kPaired; v += 2) {
          Reg even, odd;
          V::load_even_odd(row + v * W, even, odd);
          sum[v] = V::fma(weight, even, sum[v]);
          sum[v + 1] = V::fma(weight, odd, sum[v + 1]);
          std::atomic_signal_fence(std::memory_order_acq_rel);
        }
      }
#pragma GCC unroll 16
      for (int v = kPaired; v < kWholeColumns; ++v) {
        sum[v] = V::fma(weight, V::load(row + v * W), sum[v]);
        std::atomic_signal_fence(std::memory_order_acq_rel);
      }
      if constexpr (!kWhole) {
        constexpr int kLast = kColumns - 1;
        sum[kLast] = V::fma(weight, load_first<V>(row + kLast * W, last), sum[kLast]);
      }
    }
    std::swap(values, others);
  }
  if constexpr (kPaired > 0) {
#pragma GCC unroll 8
    for (int v = 0; v < kPaired; v += 2) V::interleave(sum[v], sum[v + 1]);
  }
  if (!is_unmasked) {
    Reg zero = V::zero();  // stays 0 if every sum is finite
#pragma GCC unroll 16
    for (int v = 0; v < kColumns; ++v) zero = V::fma(sum[v], V::zero(), zero);
    if (!is_zero<V>(zero)) return false;
  }
  add_to<V, kColumns, kWhole>(sum, last, out);
  return true;
}

}  // namespace
}  // namespace flash
