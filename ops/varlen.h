#pragma once
// Private to ops/: flash::varlen_attention, for sequences that are concatenated without padding,
// and the operators of which its recorded calls consist.

#include <ATen/core/Tensor.h>

#include <array>
#include <tuple>

#include "ops/operator.h"

namespace flash {

constexpr char kVarlenOp[] = "flash::varlen_attention";

/// query [Tq, H, D], key [Tk, Hk, D], value [Tk, Hv, Dv], and the offsets of the sequences in them,
/// [N + 1] each.
struct Packed {
  const at::Tensor &query, &key, &value, &cu_seqlens_q, &cu_seqlens_k;
};

/// Throws c10::TypeError, c10::ValueError or c10::NotImplementedError unless the arguments are
/// valid for flash::varlen_attention. Does not read the offsets, which a Meta tensor does not have.
void check_packed(const Packed& packed, const AttentionOptions& options);

/// [T, H, D] as [1, H, T, D].
inline at::Tensor as_heads(const at::Tensor& rows) { return rows.transpose(0, 1).unsqueeze(0); }

/// flash::_varlen_forward: out [Tq, H, Dv], of `compute_dtype`; row_stats [2, Tq * H], row_max and
/// row_sum, each the concatenation of [H, L] for every sequence; seed.
using VarlenForward = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

/// flash::_varlen_backward: the gradients of query, key, value, alibi_slopes and sinks.
using VarlenBackward = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
using VarlenNeeded = std::array<bool, 5>;

/// The tensors of Packed; options.
template <class Result>
using VarlenOperator = Operator<Result,
                                Types<const at::Tensor&, const at::Tensor&, const at::Tensor&,
                                      const at::Tensor&, const at::Tensor&>,
                                AllOptionArguments, Types<>>;

/// grad_out, the tensors of Packed, out, row_stats, seed; options; needed.
using VarlenBackwardOperator =
    Operator<VarlenBackward,
             Types<const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
                   const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
                   const at::Tensor&>,
             AllOptionArguments, Types<VarlenNeeded>>;

}  // namespace flash
