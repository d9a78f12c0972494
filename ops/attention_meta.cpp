// Meta: shapes, dtypes and strides only, for torch.compile, torch.export and fake tensors.

#include <ATen/ATen.h>
#include <torch/library.h>

#include "ops/backward_checks.h"
#include "ops/dtypes.h"
#include "ops/forward_backward.h"
#include "ops/results.h"

namespace flash {
namespace {

ForwardResult forward_meta(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                           const AttentionOptions& o) {
  const Sizes s = check_attention(query, key, value, o);
  return {empty_out(query, value, s, compute_dtype(query.scalar_type())), empty_row_stats(query, s),
          empty_seed(query, o.dropout())};
}

BackwardResult backward_meta(const at::Tensor& grad_out, const std::optional<at::Tensor>& grad_lse,
                             const at::Tensor& query, const at::Tensor& key,
                             const at::Tensor& value, const at::Tensor& out,
                             const at::Tensor& row_stats, const at::Tensor& seed,
                             const AttentionOptions& o, Needed needed) {
  check_backward(grad_out, grad_lse, query, key, value, {out, row_stats, seed}, o, needed,
                 Gradients::kTraced);
  const auto like = [&](size_t i, const std::optional<at::Tensor>& input) {
    return needed[i] ? at::empty_symint(input->sym_sizes(), input->options())
                     : allocate({0}, query);
  };
  return {empty_grad(needed[0], query), empty_grad(needed[1], key),
          empty_grad(needed[2], value), like(3, o.bias()),
          like(4, o.alibi_slopes()),    like(5, o.sinks())};
}

at::Tensor attention_meta(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                          const AttentionOptions& o) {
  return empty_out(query, value, check_attention(query, key, value, o));
}

LseResult attention_with_lse_meta(const at::Tensor& query, const at::Tensor& key,
                                  const at::Tensor& value, const AttentionOptions& o) {
  const Sizes s = check_attention(query, key, value, o);
  return {empty_out(query, value, s), log_sum_exp(empty_row_stats(query, s))};
}

}  // namespace
}  // namespace flash

TORCH_LIBRARY_IMPL(flash, Meta, m) {
  using namespace flash;
  m.impl("attention", AttentionOperator<at::Tensor>::kernel<attention_meta>);
  m.impl("attention_with_lse", AttentionOperator<LseResult>::kernel<attention_with_lse_meta>);
  m.impl("_forward", ForwardOperator::kernel<forward_meta>);
  m.impl("_backward", BackwardOperator::kernel<backward_meta>);
}
