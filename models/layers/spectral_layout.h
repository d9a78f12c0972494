#pragma once
// Spectra of several heads in the orders that matrix products want them in. In all of them a run of
// e numbers, one head's channels of one mode's real or imaginary part, is contiguous.

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace flash::models {

enum class SpectralLayout {
  kTransform,  ///< [B, 2, n, heads, e]: as a product with a table of modes gives it
  kModes,      ///< [n, heads, B, 2, e]: to be multiplied by a matrix for each mode and head
  kHeads,      ///< [B, heads, n, 2, e]: modes against modes
  kDoubled,    ///< [B, heads, 2, n, 2, e]: the real form, as below
};

/// What kDoubled holds of a number r + i j in the places [0, :, 0], [0, :, 1], [1, :, 0], [1, :,
/// 1].
enum class DoubledForm {
  kFactor,   ///< r, -i, i, r: its products with rows (r, i) are the product's real, imaginary parts
  kProduct,  ///< to be read only: r is the first less the last, i the sum of the others
};

/// A constant in time that a series was moved by, [heads * e]: added to the real part of frequency
/// 0.
struct ConstantShift {
  at::Tensor value;
  int64_t mode;   ///< which of the n modes is frequency 0, or -1
  double factor;  ///< the series' length
};

/// `spectrum` in another layout, in one pass; float32 or float64. `form` says how kDoubled is
/// meant. Differentiable once, also in the shift: a second derivative throws
/// c10::NotImplementedError.
at::Tensor rearrange_spectrum(const at::Tensor& spectrum, SpectralLayout from, SpectralLayout to,
                              DoubledForm form = DoubledForm::kFactor,
                              const ConstantShift& shift = {{}, -1, 0.0});

/// Complex weights [heads, e, o, n] -> real [n, heads, 2 e, 2 o], which multiply rows of real parts
/// and then imaginary parts as the weights multiply complex rows. Differentiable once.
at::Tensor real_form(const at::Tensor& weights);

}  // namespace flash::models
