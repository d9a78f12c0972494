#pragma once
// A few modes of a Fourier transform and the inverse transform, as products with tables of cosines
// and sines. At the steps t and T - t cosines are equal and sines opposite, so half a table
// suffices for the sum and the difference of the two steps ("folding").

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace flash::models {

/// Frequencies of a series of `length` steps, in periods per series.
struct FourierModes {
  std::vector<int64_t> periods;  ///< sorted, each in [0, length / 2]
  int64_t length;
};

/// cos(2 pi f t / T) [0] and -sin(2 pi f t / T) [1] of each mode f at steps t = 0 ... T / 2.
/// [2, n, T / 2 + 1], float64.
at::Tensor analysis_table(const FourierModes& modes);

/// The same, scaled for the inverse transform to a real series: frequency 0 and length / 2 count
/// once, the others twice. As in other inverse transforms, the imaginary parts of these two are
/// ignored.
at::Tensor synthesis_table(const FourierModes& modes);

// float32 or float64; tables are cast. Differentiable once: a second derivative throws
// c10::NotImplementedError.

/// series [B, T, C] -> its modes, real and imaginary parts [B, 2, n, C].
at::Tensor analyze_modes(const at::Tensor& series, const at::Tensor& table);

/// [B, 2, n, C] -> series of `length` T, [B, C, T].
at::Tensor synthesize_modes(const at::Tensor& spectrum, const at::Tensor& table, int64_t length);

}  // namespace flash::models
