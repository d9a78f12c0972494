#pragma once
// The product of two matrices, written to given memory, for layers that compute block by block.

#include <ATen/core/Tensor.h>
#include <flash_attention/export.h>

namespace flash {

/// Whether a product overwrites its result or is added to it.
enum class ProductResult { kReplace, kAdd };

/// out = left right, or out += left right.
///
/// left [m, k] of any strides; right [k, n] with contiguous rows or columns, so that either may be
/// a transposed matrix; out [m, n] with contiguous rows, sharing no memory with the others. One
/// dtype, float32 or float64. Where the scalar kernels are active, ATen computes it. Some tens of
/// rows suffice for full speed, 95% and more of the peak if the matrices fit the second-level
/// cache; a `right` with contiguous columns takes some hundreds. Not differentiable: call it below
/// autograd. Throws c10::TypeError or c10::ValueError; the message says what was expected.
///
/// float32 on matrix tiles where `matrix_product_uses_tiles` is true: the errors are then some 1e-5
/// of the sum of the sizes of the terms.
FLASH_API void matrix_product(const at::Tensor& left, const at::Tensor& right,
                              const at::Tensor& out,
                              ProductResult result = ProductResult::kReplace);

/// out = left right + bias, for a contiguous bias [n] of the same dtype; otherwise like
/// matrix_product.
FLASH_API void matrix_product_with_bias(const at::Tensor& left, const at::Tensor& right,
                                        const at::Tensor& bias, const at::Tensor& out);

/// Whether matrix_product forms products of this dtype from bfloat16 parts, three for each: of
/// float32 on a CPU with matrix tiles, if torch's float32 matmul precision is "high" or "medium".
FLASH_API bool matrix_product_uses_tiles(at::ScalarType dtype);

}  // namespace flash
