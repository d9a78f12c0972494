#pragma once
// The cross spectrum of two series, summed over channels.

#include "csrc/generic/lanes.h"

namespace flash {
namespace {

/// sum[f] += sum over channels c of query[c][f] * conj(key[c][f]). Complex numbers are (real,
/// imaginary) pairs.
template <class T>
void add_cross_spectrum(const T* query, const T* key, T* sum, int64_t channels,
                        int64_t frequencies) {
  for (int64_t c = 0; c < channels; ++c) {
    const T *const q = query + c * 2 * frequencies, *const k = key + c * 2 * frequencies;
#pragma GCC ivdep
    for (int64_t f = 0; f < frequencies; ++f) {
      const T qr = q[2 * f], qi = q[2 * f + 1], kr = k[2 * f], ki = k[2 * f + 1];
      sum[2 * f] = fused(qr, kr, fused(qi, ki, sum[2 * f]));
      sum[2 * f + 1] = fused(qi, kr, fused(-qr, ki, sum[2 * f + 1]));
    }
  }
}

}  // namespace
}  // namespace flash
