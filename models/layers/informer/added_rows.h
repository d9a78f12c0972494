#pragma once
// Sums of rows at given positions, on all threads, in one order: torch's index_add_ adds one row at
// a time, on one thread.

#include <ATen/core/Tensor.h>
#include <flash_attention/export.h>

namespace flash::models {

/// rows[index[i]] += added[i] for every i, in their order: rows [R, D] and added [n, D] contiguous,
/// float32 or float64, index [n], int64, in [0, R). Not differentiable: call it below autograd.
FLASH_API void add_rows(const at::Tensor& rows, const at::Tensor& index, const at::Tensor& added);

/// The same as a function of rows, which it changes in place, and added. Differentiable once: a
/// second derivative throws c10::NotImplementedError.
FLASH_API at::Tensor with_added_rows(const at::Tensor& rows, const at::Tensor& index,
                                     const at::Tensor& added);

}  // namespace flash::models
