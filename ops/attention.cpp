// The operator's schema, its C++ entry points, and what its dispatch keys share.

#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <flash_attention/ops.h>
#include <torch/library.h>

#include <cmath>
#include <string>

#include "ops/operator.h"

namespace flash {
namespace {

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

CallOptions call_options(const AttentionOptions& o) {
  return {o.bias(),  o.causal(), o.query_positions(), o.window(),     o.alibi_slopes(), o.softcap(),
          o.sinks(), o.scale(),  o.dropout(),         o.block_size(), o.use_simd()};
}

CallOptions pack_options(const std::optional<at::Tensor>& bias, bool causal,
                         const std::optional<at::Tensor>& query_positions,
                         at::OptionalIntArrayRef window,
                         const std::optional<at::Tensor>& alibi_slopes, double softcap,
                         const std::optional<at::Tensor>& sinks, std::optional<double> scale,
                         double dropout, int64_t block_size, bool use_simd) {
  Window pair;
  if (window.has_value()) {
    TORCH_CHECK_VALUE(window->size() == 2,
                      "flash::attention: expected window as two numbers, (left, right), got ",
                      *window, "; pass -1 for no bound");
    pair = {(*window)[0], (*window)[1]};
  }
  return {bias,  causal, query_positions, pair,       alibi_slopes, softcap,
          sinks, scale,  dropout,         block_size, use_simd};
}

at::Tensor attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                     const AttentionOptions& options) {
  return call_attention(query, key, value, call_options(options));
}

std::tuple<at::Tensor, at::Tensor> attention_with_lse(const at::Tensor& query,
                                                      const at::Tensor& key,
                                                      const at::Tensor& value,
                                                      const AttentionOptions& options) {
  return call_attention_with_lse(query, key, value, call_options(options));
}

LseResult call_attention_with_lse(const at::Tensor& query, const at::Tensor& key,
                                  const at::Tensor& value, const CallOptions& options) {
  static const auto op = find<AttentionCall<LseResult>::Signature>("flash::attention_with_lse");
  return with_unpacked(options,
                       [&](const auto&... each) { return op.call(query, key, value, each...); });
}

at::Tensor call_attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                          const CallOptions& options) {
  static const auto op = find<AttentionCall<at::Tensor>::Signature>("flash::attention");
  return with_unpacked(options,
                       [&](const auto&... each) { return op.call(query, key, value, each...); });
}

ForwardResult call_forward(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                           const CallOptions& options) {
  static const auto op = find<AttentionCall<ForwardResult>::Signature>("flash::_forward");
  return with_unpacked(options,
                       [&](const auto&... each) { return op.call(query, key, value, each...); });
}

BackwardResult call_backward(const at::Tensor& grad_out, const std::optional<at::Tensor>& grad_lse,
                             const at::Tensor& query, const at::Tensor& key,
                             const at::Tensor& value, const ForwardResult& saved,
                             const CallOptions& options, const Needed& needed) {
  static const auto op = find<BackwardCall::Signature>("flash::_backward");
  const auto& [out, row_stats, seed] = saved;
  return with_unpacked(options, [&](const auto&... each) {
    return op.call(grad_out, grad_lse, query, key, value, out, row_stats, seed, each..., needed);
  });
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

at::Tensor empty_out(const at::Tensor& query, const at::Tensor& value, const Sizes& s,
                     std::optional<at::ScalarType> dtype) {
  if (!s.has_head_dimension) return allocate({s.batch, s.queries, s.value_dim}, query, dtype);
  if (is_heads_last(query)) {
    return allocate({s.batch, s.queries, s.heads, s.value_dim}, value, dtype).transpose(1, 2);
  }
  return allocate({s.batch, s.heads, s.queries, s.value_dim}, query, dtype);
}

at::Tensor empty_row_stats(const at::Tensor& query, const Sizes& s) {
  const at::ScalarType dtype = compute_dtype(query.scalar_type());
  if (!s.has_head_dimension) return allocate({2, s.batch, s.queries}, query, dtype);
  return allocate({2, s.batch, s.heads, s.queries}, query, dtype);
}

at::Tensor empty_seed(const at::Tensor& query, double dropout) {
  return allocate({dropout > 0 ? 1 : 0}, query, at::kLong);
}

at::Tensor empty_grad(bool needed, const at::Tensor& input, std::optional<at::ScalarType> dtype) {
  if (!needed) return allocate({0}, input, dtype);
  const auto sizes = input.sym_sizes();
  if (is_heads_last(input)) {
    return allocate({sizes[0], sizes[2], sizes[1], sizes[3]}, input, dtype).transpose(1, 2);
  }
  return allocate(sizes, input, dtype);
}

at::Tensor in_dtype(const at::Tensor& t, at::ScalarType dtype) {
  return t.scalar_type() == dtype ? t : t.to(dtype);
}

at::Tensor widened(const at::Tensor& t) { return in_dtype(t, compute_dtype(t.scalar_type())); }

std::optional<at::Tensor> widened(const std::optional<at::Tensor>& t) {
  return t.has_value() ? std::optional<at::Tensor>(widened(*t)) : t;
}

CallOptions widened(CallOptions o) {
  for (std::optional<at::Tensor>* t : {&o.bias, &o.alibi_slopes, &o.sinks}) *t = widened(*t);
  return o;
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
  using flash::kOptionsSchema;
  const std::vector<at::Tag> compliant = {at::Tag::pt2_compliant_tag};
  const std::vector<at::Tag> random = {at::Tag::pt2_compliant_tag,
                                       at::Tag::nondeterministic_seeded};
  const auto define = [&](const std::string& name, const std::string& results) {
    const std::string schema =
        name + "(Tensor query, Tensor key, Tensor value, *, " + kOptionsSchema + ") -> " + results;
    m.def(schema.c_str(), random);
  };
  define("attention", "Tensor");
  define("attention_with_lse", "(Tensor out, Tensor lse)");
  define("_forward", "(Tensor out, Tensor row_stats, Tensor seed)");
  m.def(
      "_backward(Tensor grad_out, Tensor? grad_lse, Tensor query, Tensor key, Tensor value, "
      "Tensor out, Tensor row_stats, Tensor seed, Tensor? bias, bool causal, "
      "Tensor? query_positions, int[2]? window, Tensor? alibi_slopes, float softcap, "
      "Tensor? sinks, float? scale, float dropout, int block_size, bool use_simd, "
      "bool[6] needed) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
      compliant);
}
