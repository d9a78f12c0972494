#pragma once
// Private to ops/: the calls that the files of the operator make of one another, through the
// dispatcher, and the shapes of what they return.

#include <ATen/core/Tensor.h>
#include <flash_attention/ops.h>

#include <array>
#include <cstdint>
#include <optional>
#include <tuple>

#include "ops/checks.h"

namespace flash {

/// flash::attention.
at::Tensor call_attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                          const CallOptions& options);

/// flash::attention_with_lse: out, lse.
using LseResult = std::tuple<at::Tensor, at::Tensor>;
LseResult call_attention_with_lse(const at::Tensor& query, const at::Tensor& key,
                                  const at::Tensor& value, const CallOptions& options);

/// flash::_forward: out, row_stats, seed.
///
/// out is of `compute_dtype`: rounded to 16 bits, it would cost the gradients more than their own
/// rounding does, as the difference of dP and rowsum(dO o O) is small where few keys are attended.
/// row_stats [2, B, H, L] (or [2, B, L]), of `compute_dtype`, holds row_max, the largest score of
/// each row, and row_sum, the sum of exp(score - row_max). seed is int64 [1] with dropout and [0]
/// without.
using ForwardResult = std::tuple<at::Tensor, at::Tensor, at::Tensor>;
ForwardResult call_forward(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                           const CallOptions& options);

/// What the operator has a derivative by, in this order: query, key, value, bias, alibi_slopes,
/// sinks.
constexpr size_t kDifferentiable = 6;
using Needed = std::array<bool, kDifferentiable>;

/// flash::_backward: gradients of those; [0] where `needed` is false.
using BackwardResult =
    std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
BackwardResult call_backward(const at::Tensor& grad_out, const std::optional<at::Tensor>& grad_lse,
                             const at::Tensor& query, const at::Tensor& key,
                             const at::Tensor& value, const ForwardResult& saved,
                             const CallOptions& options, const Needed& needed);

/// _backward: grad_out, grad_lse, query, key, value, out, row_stats, seed; options; needed.
using BackwardCall = Unpacked<
    BackwardResult,
    Types<const at::Tensor&, const std::optional<at::Tensor>&, const at::Tensor&, const at::Tensor&,
          const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&>,
    OptionTypes, Types<Needed>>;

/// Contiguous and uninitialised, on the device of `like`; in its dtype unless one is given. For
/// kernels of the CPU and Meta keys only: it does not show itself to modes that follow every call.
at::Tensor allocate(c10::SymIntArrayRef sizes, const at::Tensor& like,
                    std::optional<at::ScalarType> dtype = std::nullopt);

/// Output of the call, uninitialised. It follows the layout of query: [B, L, H, D] in memory, as
/// models produce it, gives [B, L, H, Dv], so that merging the heads stays a view.
at::Tensor empty_out(const at::Tensor& query, const at::Tensor& value, const Sizes& sizes,
                     std::optional<at::ScalarType> dtype = std::nullopt);

/// row_stats, uninitialised.
at::Tensor empty_row_stats(const at::Tensor& query, const Sizes& sizes);

/// The seed that the call draws, uninitialised: int64 [1] with dropout and [0] without.
at::Tensor empty_seed(const at::Tensor& query, double dropout);

/// Gradient of `input`, uninitialised, of its layout where rows of that are contiguous; [0] unless
/// it is needed.
at::Tensor empty_grad(bool needed, const at::Tensor& input,
                      std::optional<at::ScalarType> dtype = std::nullopt);

/// `t`, or a copy in `dtype`: without the call to the dispatcher that t.to() is even where there is
/// nothing to do. Recorded and differentiable.
at::Tensor in_dtype(const at::Tensor& t, at::ScalarType dtype);

/// In `compute_dtype` of what `t` is.
at::Tensor widened(const at::Tensor& t);
std::optional<at::Tensor> widened(const std::optional<at::Tensor>& t);
/// The options with every floating tensor of them widened.
CallOptions widened(CallOptions options);

/// [B, H, L] (or [B, L]): the logarithm of each row's sum of exponentials.
at::Tensor log_sum_exp(const at::Tensor& row_stats);

/// 1 / sqrt(head_dim) unless given. A head_dim of 0 has only scores of 0, and any finite scale.
double resolve_scale(std::optional<double> scale, int64_t head_dim);

/// A seed from torch's CPU generator: the one draw that a call with dropout makes.
int64_t draw_seed();

/// bool [batch, heads, queries, keys]: what the kernels keep under `seed` of queries from `first`
/// on.
at::Tensor dropout_mask_from_seed(int64_t batch, int64_t heads, int64_t first, int64_t queries,
                                  int64_t keys, double dropout, int64_t seed);

}  // namespace flash
