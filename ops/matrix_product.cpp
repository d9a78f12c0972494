#include <ATen/ATen.h>
#include <flash_attention/matrix_product.h>

#include "ops/kernel_selection.h"
#include "ops/schedule.h"

namespace flash {
namespace {

constexpr char kMatrixProduct[] = "flash::matrix_product";

bool rows_are_contiguous(const at::Tensor& t) { return t.size(1) <= 1 || t.stride(1) == 1; }

void check_product(const at::Tensor& left, const at::Tensor& right, const at::Tensor& out) {
  TORCH_CHECK_VALUE(left.dim() == 2 && right.dim() == 2 && out.dim() == 2 &&
                        left.size(1) == right.size(0) && out.size(0) == left.size(0) &&
                        out.size(1) == right.size(1),
                    kMatrixProduct, ": expected left [m, k], right [k, n] and out [m, n], got ",
                    left.sizes(), ", ", right.sizes(), " and ", out.sizes());
  check_kernel_input(kMatrixProduct, "left", left);
  check_same_dtype(kMatrixProduct, "left", left, "right", right);
  check_same_dtype(kMatrixProduct, "left", left, "out", out);
  TORCH_CHECK_VALUE(
      (rows_are_contiguous(right) || rows_are_contiguous(right.t())) && rows_are_contiguous(out),
      kMatrixProduct,
      ": expected contiguous rows or columns of right, and rows of out, got strides ",
      right.strides(), " and ", out.strides(), "; copy right with .contiguous()");
}

/// Whether ATen computes a product, because the scalar kernels are active.
bool aten_computes(const at::Tensor& left) {
  const at::ScalarType dtype = left.scalar_type();
  return &kernels_of(kMatrixProduct, dtype) ==
         &kernels_of(kMatrixProduct, dtype, /*use_simd=*/false);
}

void run_product(const at::Tensor& left, const at::Tensor& right, const at::Tensor& out, bool add,
                 const void* bias, FloatParts parts) {
  const TypedKernels& kernels = kernels_of(kMatrixProduct, left.scalar_type());
  ProductParams p = {};
  p.left = left.const_data_ptr(), p.right = right.const_data_ptr();
  p.out = out.mutable_data_ptr();
  p.left_row = left.stride(0), p.left_step = left.stride(1);
  p.right_row = right.stride(0), p.right_column = right.stride(1);
  p.out_row = out.stride(0);
  p.rows = left.size(0), p.depth = left.size(1), p.columns = right.size(1);
  p.add = add, p.bias = bias, p.float_parts = parts;
  run_units(kernels.product_plan(p),
            [&](int64_t begin, int64_t end) { kernels.product(p, begin, end); });
}

}  // namespace

bool matrix_product_uses_tiles(at::ScalarType dtype) {
  // Three parts, as in attention, are not faster than vectors.
  return float_parts_of(kMatrixProduct, dtype) == 2;
}

void matrix_product(const at::Tensor& left, const at::Tensor& right, const at::Tensor& out,
                    ProductResult result) {
  check_product(left, right, out);
  const bool add = result == ProductResult::kAdd;
  if (!aten_computes(left)) {
    const bool tiles = matrix_product_uses_tiles(left.scalar_type());
    return run_product(left, right, out, add, /*bias=*/nullptr, tiles ? 2 : 0);
  }
  at::Tensor target = out;
  if (add) {
    target.addmm_(left, right);
  } else {
    at::mm_out(target, left, right);
  }
}

void matrix_product_with_bias(const at::Tensor& left, const at::Tensor& right,
                              const at::Tensor& bias, const at::Tensor& out) {
  check_product(left, right, out);
  check_same_dtype(kMatrixProduct, "left", left, "bias", bias);
  TORCH_CHECK_VALUE(bias.dim() == 1 && bias.size(0) == right.size(1) && bias.is_contiguous(),
                    kMatrixProduct, ": expected a contiguous bias [", right.size(1), "], got ",
                    bias.sizes(), " of strides ", bias.strides());
  if (aten_computes(left) || matrix_product_uses_tiles(left.scalar_type())) {
    out.copy_(bias.expand_as(out));
    return matrix_product(left, right, out, ProductResult::kAdd);
  }
  run_product(left, right, out, /*add=*/false, bias.const_data_ptr(), /*parts=*/0);
}

}  // namespace flash
