#pragma once
// Private to ops/: from tensors to the kernels of csrc/.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstdint>

#include "csrc/kernels.h"

namespace flash {

/// The table of the CPU that this is, or that FLASH_ATTENTION_ISA names. `op` begins the text of
/// the error for a misspelt name.
const KernelTable& active_table(const char* op);

/// Its kernels; without `use_simd` the scalar ones. A misspelt name is an error in either case.
const TypedKernels& kernels_of(const char* op, at::ScalarType dtype, bool use_simd = true);

/// Throws unless `tensor` is on the CPU, and float32 or float64.
void check_kernel_input(const char* op, const char* name, const at::Tensor& tensor);

/// Throws unless `other` is on the CPU and of the dtype of `tensor`.
void check_same_dtype(const char* op, const char* name, const at::Tensor& tensor,
                      const char* other_name, const at::Tensor& other);

/// `tensor`, or a copy of it if its last dimension is not contiguous.
at::Tensor rows_contiguous(const at::Tensor& tensor);

/// How many units a thread takes at least.
inline int64_t units_per_thread(const WorkPlan& plan) {
  // Waking a thread costs a few microseconds, in which a core does about this many operations.
  constexpr int64_t kFlopsPerWakeUp = 200'000;
  return std::max<int64_t>(1, kFlopsPerWakeUp / std::max<int64_t>(1, plan.flops_per_unit));
}

/// Calls run(unit_begin, unit_end) on as many threads as the work is worth.
template <class Run>
void run_units(const WorkPlan& plan, Run&& run) {
  at::parallel_for(0, plan.units, units_per_thread(plan), run);
}

}  // namespace flash
