#pragma once
// Private to ops/: memory for the results of a call, shared by the CPU and the Meta kernels, so
// that both give the same shapes, dtypes and strides.

#include <ATen/core/Tensor.h>

#include <optional>

#include "ops/attention_checks.h"

namespace flash {

/// Contiguous and uninitialised, on the device of `like`; in its dtype unless one is given. Only
/// for kernels of the CPU and Meta keys: on the CPU it bypasses the dispatcher, and with it
/// TorchDispatchMode.
at::Tensor allocate(c10::SymIntArrayRef sizes, const at::Tensor& like,
                    std::optional<at::ScalarType> dtype = std::nullopt);

/// The output, uninitialised, in the layout of query: for a query that is [B, L, H, D] in memory,
/// or a slice of that, as models produce it, out is [B, L, H, Dv] in memory, so that merging the
/// heads is a view.
at::Tensor empty_out(const at::Tensor& query, const at::Tensor& value, const Sizes& sizes,
                     std::optional<at::ScalarType> dtype = std::nullopt);

/// row_stats, uninitialised.
at::Tensor empty_row_stats(const at::Tensor& query, const Sizes& sizes);

/// The seed that the call draws, uninitialised: int64 [1] with dropout and [0] without.
at::Tensor empty_seed(const at::Tensor& query, double dropout);

/// The gradient of `input`, uninitialised, in its layout if its rows are contiguous; [0] unless it
/// is needed.
at::Tensor empty_grad(bool needed, const at::Tensor& input,
                      std::optional<at::ScalarType> dtype = std::nullopt);

/// [B, H, L] (or [B, L]): the log-sum-exp of each row.
at::Tensor log_sum_exp(const at::Tensor& row_stats);

}  // namespace flash
