#pragma once
// Private to ops/: the kernels of csrc/ for a call, and checks of the tensors that they read.

#include <ATen/core/Tensor.h>

#include "csrc/kernels.h"

namespace flash {

/// The kernel table of this CPU, or the one that FLASH_ATTENTION_ISA names. Throws c10::ValueError,
/// with a message that begins with `op`, if the variable names none that runs here.
const KernelTable& active_table(const char* op);

/// Its kernels for the dtype; without `use_simd` the scalar ones. Throws as `active_table`, in both
/// cases.
const TypedKernels& kernels_of(const char* op, at::ScalarType dtype, bool use_simd = true);

/// In how many parts the active kernels may take elements of this dtype: for float32 where they
/// have matrix tiles, 2 if torch's float32 matmul precision is "high" or "medium", and 3 if it is
/// "highest" but FLASH_ATTENTION_ISA is set. Else 0. Throws as `active_table`.
FloatParts float_parts_of(const char* op, at::ScalarType dtype);

/// Throws c10::ValueError unless `tensor` is on the CPU, c10::TypeError unless it is float32 or
/// float64.
void check_kernel_input(const char* op, const char* name, const at::Tensor& tensor);

/// Throws c10::ValueError unless `other` is on the CPU, c10::TypeError unless it is of the dtype of
/// `tensor`.
void check_same_dtype(const char* op, const char* name, const at::Tensor& tensor,
                      const char* other_name, const at::Tensor& other);

/// `tensor`, or a copy of it if its last dimension is not contiguous.
at::Tensor rows_contiguous(const at::Tensor& tensor);

}  // namespace flash
