#pragma once
// The product of two matrices, written in place: for layers that work block by block.

#include <ATen/core/Tensor.h>
#include <flash_attention/export.h>

namespace flash {

/// Whether a product replaces what is in its result or is added to it.
enum class ProductResult { kReplace, kAdd };

/// out = left right, or out += left right.
///
/// left [m, k] of any strides; right [k, n] with contiguous rows or columns, so that either may be
/// a transposed matrix; out [m, n] with contiguous rows, sharing no memory with the others; all
/// float32 or float64 of one dtype. The kernels of AVX2 and AVX-512 do it, other CPUs ATen. Some
/// tens of rows are enough for full speed, 95% and more of the peak where the matrices fit the
/// second-level cache; a `right` with contiguous columns takes some hundred. Not differentiable:
/// call it below autograd. Throws c10::TypeError or c10::ValueError naming what was expected.
FLASH_API void matrix_product(const at::Tensor& left, const at::Tensor& right,
                              const at::Tensor& out,
                              ProductResult result = ProductResult::kReplace);

}  // namespace flash
