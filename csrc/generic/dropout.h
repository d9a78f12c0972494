#pragma once
// Dropout of a flat array, alone or fused with the activation before it or the addition after it.

#include <cstdint>

#include "csrc/denormals.h"
#include "csrc/generic/gelu.h"
#include "csrc/generic/product.h"
#include "csrc/kernels.h"
#include "csrc/philox.h"

namespace flash {
namespace {

/// A unit of work is 16 blocks, 4 KiB of float: enough to amortize the call.
constexpr int64_t kDropoutUnit = 16 * kDropoutBlock;

inline WorkPlan dropout_plan(const DropoutParams& p) {
  const bool gelu = p.kind == DropoutKind::kGelu || p.kind == DropoutKind::kGeluGradient;
  const int64_t flops = gelu ? 60 : 30;
  return {ceil_div(p.elements, kDropoutUnit), 1, kDropoutUnit * flops};
}

/// One block of kDropoutBlock elements. With kValue, also writes the activation, besides its
/// gradient.
template <class V, DropoutKind kKind, bool kValue>
inline void dropout_block(const typename V::Scalar* x, const typename V::Scalar* other,
                          typename V::Scalar* out, typename V::Scalar* value, const uint32_t* words,
                          uint32_t threshold, typename V::Scalar scale) {
  using Reg = typename V::Reg;
  constexpr int W = V::kWidth;
  constexpr int kRegs = kDropoutBlock / W;
  constexpr int N = V::kExpRows < kRegs ? V::kExpRows : kRegs;
  static_assert(kRegs % N == 0);
  const Reg factor = V::broadcast(scale);
  for (int at = 0; at < kDropoutBlock; at += N * W) {
    Reg y[N], active[N];
    each<N>([&](int i) { y[i] = V::load(x + at + i * W); });
    // V::max returns its second operand if either is NaN.
    each<N>([&](int i) { active[i] = V::max(V::zero(), y[i]); });
    if constexpr (kKind == DropoutKind::kGelu) gelu<V, N>(y);
    if constexpr (kKind == DropoutKind::kGeluGradient) gelu_derivative<V, N>(y, active);
    each<N>([&](int i) {
      const auto dropped = [&](Reg r) {
        return V::if_at_least(words + at + i * W, threshold, V::mul(r, factor));
      };
      if constexpr (kKind == DropoutKind::kRelu) y[i] = active[i];
      if constexpr (kKind == DropoutKind::kReluGradient) {
        y[i] = V::if_less(V::zero(), y[i], V::load(other + at + i * W), V::zero());
      }
      if constexpr (kKind == DropoutKind::kGeluGradient) {
        y[i] = V::mul(y[i], V::load(other + at + i * W));
      }
      y[i] = dropped(y[i]);
      if constexpr (kKind == DropoutKind::kAdd) y[i] = V::add(y[i], V::load(other + at + i * W));
      V::store(out + at + i * W, y[i]);
      if constexpr (kValue) V::store(value + at + i * W, dropped(active[i]));
    });
  }
}

template <class V, DropoutKind kKind, bool kValue = false>
void dropout_as(const DropoutParams& p, int64_t unit_begin, int64_t unit_end) {
  using T = typename V::Scalar;
  constexpr bool kHasOther =
      kKind != DropoutKind::kPlain && kKind != DropoutKind::kRelu && kKind != DropoutKind::kGelu;
  const T* input = static_cast<const T*>(p.input);
  const T* other = static_cast<const T*>(p.other);
  T* out = static_cast<T*>(p.out);
  T* value = static_cast<T*>(p.value);
  const PhiloxKey key = philox_key(p.seed);
  const uint32_t threshold = dropout_threshold(p.dropout);
  const T scale = static_cast<T>(dropout_keep_scale(p.dropout));
  const int64_t end = min_of(unit_end * kDropoutUnit, p.elements);
  alignas(64) uint32_t words[kDropoutBlock];
  const auto draw = [&](int64_t at) {
    const auto block = static_cast<uint64_t>((p.first + at) / kDropoutBlock);
    element_words<typename V::Counters>(key, block, words);
  };
  int64_t at = unit_begin * kDropoutUnit;
  for (; at + kDropoutBlock <= end; at += kDropoutBlock) {
    draw(at);
    dropout_block<V, kKind, kValue>(input + at, kHasOther ? other + at : nullptr, out + at,
                                    kValue ? value + at : nullptr, words, threshold, scale);
  }
  if (at == end) return;
  // The last block is not full: a padded copy of it is processed.
  alignas(64) T x[kDropoutBlock] = {}, y[kDropoutBlock] = {}, result[kDropoutBlock],
                active[kDropoutBlock];
  for (int64_t i = 0; i < end - at; ++i) {
    x[i] = input[at + i];
    if constexpr (kHasOther) y[i] = other[at + i];
  }
  draw(at);
  dropout_block<V, kKind, kValue>(x, y, result, active, words, threshold, scale);
  for (int64_t i = 0; i < end - at; ++i) {
    out[at + i] = result[i];
    if constexpr (kValue) value[at + i] = active[i];
  }
}

template <class V>
void dropout(const DropoutParams& p, int64_t unit_begin, int64_t unit_end) {
  const auto flushing = [&](auto run) {
    const FlushDenormals flush;  // the exponential of GELU needs it
    run(p, unit_begin, unit_end);
  };
  switch (p.kind) {
    case DropoutKind::kPlain:
      return dropout_as<V, DropoutKind::kPlain>(p, unit_begin, unit_end);
    case DropoutKind::kAdd:
      return dropout_as<V, DropoutKind::kAdd>(p, unit_begin, unit_end);
    case DropoutKind::kRelu:
      return dropout_as<V, DropoutKind::kRelu>(p, unit_begin, unit_end);
    case DropoutKind::kReluGradient:
      return p.value == nullptr
                 ? dropout_as<V, DropoutKind::kReluGradient>(p, unit_begin, unit_end)
                 : dropout_as<V, DropoutKind::kReluGradient, true>(p, unit_begin, unit_end);
    case DropoutKind::kGelu:
      return flushing(dropout_as<V, DropoutKind::kGelu>);
    case DropoutKind::kGeluGradient:
      return p.value == nullptr ? flushing(dropout_as<V, DropoutKind::kGeluGradient>)
                                : flushing(dropout_as<V, DropoutKind::kGeluGradient, true>);
  }
}

}  // namespace
}  // namespace flash
