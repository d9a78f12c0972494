#pragma once
// Private to ops/: flash::_forward_part and flash::_backward_part, which compute a part of a larger
// call: some of its heads, some of its queries, some of its keys. Processes that share one call
// exchange their results.

#include <ATen/core/Tensor.h>

#include <tuple>

#include "csrc/params.h"
#include "ops/forward_backward.h"
#include "ops/operator.h"

namespace flash {

/// What a part takes from the call that it belongs to.
struct Part {
  int64_t seed;
  Origin origin;
  bool whole_rows = false;
};

/// `seed` is int64 [1] with dropout, and ignored without. `place` is the index of the first batch
/// element, head, query and key in the larger call, and its number of heads. Throws c10::ValueError
/// or c10::TypeError where they do not fit `query`.
Part make_part(const at::Tensor& query, const at::Tensor& seed, at::IntArrayRef place,
               double dropout);

/// out and row_stats as those of flash::_forward. `whole_rows`: the part has every key that its
/// queries attend. If not, a row without a positive weight is 0: it may have one in other parts.
using ForwardPartResult = std::tuple<at::Tensor, at::Tensor>;
/// query, key, value, seed, place, whole_rows; options.
using ForwardPartOperator = Operator<ForwardPartResult,
                                     Types<const at::Tensor&, const at::Tensor&, const at::Tensor&,
                                           const at::Tensor&, at::IntArrayRef, bool>,
                                     AllOptionArguments, Types<>>;

/// The result of flash::_backward, with out and row_stats of the larger call. The gradients of
/// query, key and value are of `compute_dtype`: they are terms of sums.
/// grad_out, grad_lse, query, key, value, out, row_stats, seed, place; options; needed.
using BackwardPartOperator =
    Operator<BackwardResult,
             Types<const at::Tensor&, const std::optional<at::Tensor>&, const at::Tensor&,
                   const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
                   const at::Tensor&, at::IntArrayRef>,
             AllOptionArguments, Types<Needed>>;

}  // namespace flash
