// The operator's schema, its C++ entry points, and what its dispatch keys share.

#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <flash_attention/ops.h>
#include <torch/library.h>

#include <cmath>

#include "ops/operator.h"

namespace flash {
namespace {

using AttentionSignature = at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&,
                                      const std::optional<at::Tensor>&, bool,
                                      const std::optional<at::Tensor>&, std::optional<double>,
                                      double, int64_t, bool);
using AttentionWithLseSignature = std::tuple<at::Tensor, at::Tensor>(
    const at::Tensor&, const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&, bool,
    const std::optional<at::Tensor>&, std::optional<double>, double, int64_t, bool);
using ForwardSignature = ForwardResult(const at::Tensor&, const at::Tensor&, const at::Tensor&,
                                       const std::optional<at::Tensor>&, bool,
                                       const std::optional<at::Tensor>&, std::optional<double>,
                                       double, int64_t, bool);
using BackwardSignature = BackwardResult(const at::Tensor&, const std::optional<at::Tensor>&,
                                         const at::Tensor&, const at::Tensor&, const at::Tensor&,
                                         const at::Tensor&, const at::Tensor&, const at::Tensor&,
                                         const std::optional<at::Tensor>&, bool,
                                         const std::optional<at::Tensor>&, std::optional<double>,
                                         double, int64_t, bool, std::array<bool, 4>);

template <class Signature>
c10::TypedOperatorHandle<Signature> find(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

// Whether merging heads of [B, L, H, D] would be a view of `t` but not of a contiguous [B, H, L,
// D].
bool is_heads_last(const at::Tensor& t) {
  return t.dim() == 4 && !t.is_contiguous() && t.transpose(1, 2).is_contiguous();
}

}  // namespace

at::Tensor attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                     const AttentionOptions& o) {
  return call_attention(query, key, value,
                        {o.bias(), o.causal(), o.query_positions(), o.scale(), o.dropout(),
                         o.block_size(), o.use_simd()});
}

std::tuple<at::Tensor, at::Tensor> attention_with_lse(const at::Tensor& query,
                                                      const at::Tensor& key,
                                                      const at::Tensor& value,
                                                      const AttentionOptions& o) {
  static const auto op = find<AttentionWithLseSignature>("flash::attention_with_lse");
  return op.call(query, key, value, o.bias(), o.causal(), o.query_positions(), o.scale(),
                 o.dropout(), o.block_size(), o.use_simd());
}

at::Tensor call_attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                          const CallOptions& o) {
  static const auto op = find<AttentionSignature>("flash::attention");
  return op.call(query, key, value, o.bias, o.causal, o.query_positions, o.scale, o.dropout,
                 o.block_size, o.use_simd);
}

ForwardResult call_forward(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                           const CallOptions& o) {
  static const auto op = find<ForwardSignature>("flash::_forward");
  return op.call(query, key, value, o.bias, o.causal, o.query_positions, o.scale, o.dropout,
                 o.block_size, o.use_simd);
}

BackwardResult call_backward(const at::Tensor& grad_out, const std::optional<at::Tensor>& grad_lse,
                             const at::Tensor& query, const at::Tensor& key,
                             const at::Tensor& value, const ForwardResult& saved,
                             const CallOptions& o, std::array<bool, 4> needed) {
  static const auto op = find<BackwardSignature>("flash::_backward");
  const auto& [out, row_stats, seed] = saved;
  return op.call(grad_out, grad_lse, query, key, value, out, row_stats, seed, o.bias, o.causal,
                 o.query_positions, o.scale, o.dropout, o.block_size, o.use_simd, needed);
}

at::Tensor allocate(c10::SymIntArrayRef sizes, const at::Tensor& like,
                    std::optional<at::ScalarType> dtype) {
  const at::ScalarType type = dtype.value_or(like.scalar_type());
  // Inside a CPU kernel another way through the dispatcher would take as long as the allocation.
  if (like.is_cpu()) {
    return at::detail::empty_cpu(C10_AS_INTARRAYREF_SLOW(sizes), type);
  }
  return at::empty_symint(sizes, like.options().dtype(type));
}

at::Tensor empty_out(const at::Tensor& query, const at::Tensor& value, const Sizes& s) {
  if (!s.has_head_dimension) return allocate({s.batch, s.queries, s.value_dim}, query);
  if (is_heads_last(query)) {
    return allocate({s.batch, s.queries, s.heads, s.value_dim}, value).transpose(1, 2);
  }
  return allocate({s.batch, s.heads, s.queries, s.value_dim}, query);
}

at::Tensor empty_row_stats(const at::Tensor& query, const Sizes& s) {
  if (!s.has_head_dimension) return allocate({2, s.batch, s.queries}, query);
  return allocate({2, s.batch, s.heads, s.queries}, query);
}

at::Tensor empty_seed(const at::Tensor& query, double dropout) {
  return allocate({dropout > 0 ? 1 : 0}, query, at::kLong);
}

at::Tensor empty_grad(bool needed, const at::Tensor& input) {
  if (!needed) return allocate({0}, input);
  const auto sizes = input.sym_sizes();
  if (is_heads_last(input)) {
    return allocate({sizes[0], sizes[2], sizes[1], sizes[3]}, input).transpose(1, 2);
  }
  return allocate(sizes, input);
}

at::Tensor log_sum_exp(const at::Tensor& row_stats) {
  return row_stats.select(0, 1).log().add_(row_stats.select(0, 0));
}

double resolve_scale(std::optional<double> scale, int64_t head_dim) {
  if (scale.has_value()) return *scale;
  return head_dim == 0 ? 1.0 : 1.0 / std::sqrt(static_cast<double>(head_dim));
}

}  // namespace flash

TORCH_LIBRARY(flash, m) {
  const std::vector<at::Tag> compliant = {at::Tag::pt2_compliant_tag};
  const std::vector<at::Tag> random = {at::Tag::pt2_compliant_tag,
                                       at::Tag::nondeterministic_seeded};
  m.def(
      "attention(Tensor query, Tensor key, Tensor value, *, Tensor? bias=None, bool causal=False, "
      "Tensor? query_positions=None, float? scale=None, float dropout=0.0, int block_size=64, "
      "bool use_simd=True) -> Tensor",
      random);
  m.def(
      "attention_with_lse(Tensor query, Tensor key, Tensor value, *, Tensor? bias=None, "
      "bool causal=False, Tensor? query_positions=None, float? scale=None, float dropout=0.0, "
      "int block_size=64, bool use_simd=True) -> (Tensor out, Tensor lse)",
      random);
  m.def(
      "_forward(Tensor query, Tensor key, Tensor value, Tensor? bias, bool causal, "
      "Tensor? query_positions, float? scale, float dropout, int block_size, bool use_simd) "
      "-> (Tensor out, Tensor row_stats, Tensor seed)",
      random);
  m.def(
      "_backward(Tensor grad_out, Tensor? grad_lse, Tensor query, Tensor key, Tensor value, "
      "Tensor out, Tensor row_stats, Tensor seed, Tensor? bias, bool causal, "
      "Tensor? query_positions, float? scale, float dropout, int block_size, bool use_simd, "
      "bool[4] needed) -> (Tensor, Tensor, Tensor, Tensor)",
      compliant);
}
