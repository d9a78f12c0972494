#pragma once
// Private to ops/: the operators behind flash::varlen_attention and what their dispatch keys share.

#include <ATen/core/Tensor.h>

#include <array>
#include <tuple>

#include "ops/call_options.h"

namespace flash {

constexpr char kVarlenOp[] = "flash::varlen_attention";

/// query [Tq, H, D], key [Tk, Hk, D], value [Tk, Hv, Dv] and where their sequences begin, [N + 1].
struct Packed {
  const at::Tensor &query, &key, &value, &cu_seqlens_q, &cu_seqlens_k;
};

/// Throws unless the call is one of flash::varlen_attention, but for the values of the offsets,
/// which a Meta tensor has not.
void check_packed(const Packed& packed, const CallOptions& options);

/// [T, H, D] as [1, H, T, D].
inline at::Tensor as_heads(const at::Tensor& rows) { return rows.transpose(0, 1).unsqueeze(0); }

/// flash::_varlen_forward: out [Tq, H, Dv], of `compute_dtype`; row_stats [2, Tq * H], the largest
/// score and the sum of each row, [H, L] for one sequence after the other; seed.
using VarlenForward = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

/// flash::_varlen_backward: gradients of query, key, value, alibi_slopes and sinks.
using VarlenBackward = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
using VarlenNeeded = std::array<bool, 5>;

template <class Result>
using VarlenCall = Unpacked<Result,
                            Types<const at::Tensor&, const at::Tensor&, const at::Tensor&,
                                  const at::Tensor&, const at::Tensor&>,
                            OptionTypes, Types<>>;

/// grad_out, the five, out, row_stats, seed; options; needed.
using VarlenBackwardCall = Unpacked<VarlenBackward,
                                    Types<const at::Tensor&, const at::Tensor&, const at::Tensor&,
                                          const at::Tensor&, const at::Tensor&, const at::Tensor&,
                                          const at::Tensor&, const at::Tensor&, const at::Tensor&>,
                                    OptionTypes, Types<VarlenNeeded>>;

}  // namespace flash
