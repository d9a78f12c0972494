#include "ops/kernel_selection.h"

#include <ATen/ATen.h>
#include <ATen/Context.h>
#include <c10/util/Exception.h>

#include <stdexcept>

#include "csrc/dispatch.h"

namespace flash {
namespace {

void check_cpu(const char* op, const char* name, const at::Tensor& tensor) {
  TORCH_CHECK_VALUE(tensor.device().is_cpu(), op, ": expected ", name, " on the CPU, got it on ",
                    tensor.device(), "; move it with .cpu()");
}

// Where torch's older and newer settings of the precision contradict each other, torch refuses to
// name it. Then nothing less than float32 was asked for.
at::Float32MatmulPrecision matmul_precision() {
  try {
    return at::globalContext().float32MatmulPrecision();
  } catch (const c10::Error&) {
    return at::Float32MatmulPrecision::HIGHEST;
  }
}

}  // namespace

const KernelTable& active_table(const char* op) {
  try {
    return active_kernels();
  } catch (const std::invalid_argument& error) {
    TORCH_CHECK_VALUE(false, op, ": ", error.what());
  }
}

const TypedKernels& kernels_of(const char* op, at::ScalarType dtype, bool use_simd) {
  const KernelTable& active = active_table(op);
  const KernelTable& table = use_simd ? active : scalar_kernels();
  return dtype == at::kDouble ? table.f64 : table.f32;
}

FloatParts float_parts_of(const char* op, at::ScalarType dtype) {
  if (dtype != at::kFloat) return 0;
  if (active_table(op).bfloat16_products != BFloat16Products::kOnTiles) return 0;
  if (matmul_precision() != at::Float32MatmulPrecision::HIGHEST) return 2;
  return kernels_are_asked_for() ? 3 : 0;
}

void check_kernel_input(const char* op, const char* name, const at::Tensor& tensor) {
  check_cpu(op, name, tensor);
  TORCH_CHECK_TYPE(tensor.scalar_type() == at::kFloat || tensor.scalar_type() == at::kDouble, op,
                   ": expected ", name, " of dtype float32 or float64, got ", tensor.scalar_type(),
                   "; convert it with .float()");
}

void check_same_dtype(const char* op, const char* name, const at::Tensor& tensor,
                      const char* other_name, const at::Tensor& other) {
  check_cpu(op, other_name, other);
  TORCH_CHECK_TYPE(other.scalar_type() == tensor.scalar_type(), op, ": expected ", name, " and ",
                   other_name, " of the same dtype, got ", tensor.scalar_type(), " and ",
                   other.scalar_type(), "; convert one with .to(dtype)");
}

at::Tensor rows_contiguous(const at::Tensor& tensor) {
  return tensor.size(-1) <= 1 || tensor.stride(-1) == 1 ? tensor : tensor.contiguous();
}

}  // namespace flash
