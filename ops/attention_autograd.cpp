// Autograd: the forward saves its inputs, its output and two numbers per row; the backward computes
// the weights again.

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <flash_attention/ops.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "ops/operator.h"

namespace flash {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// The second derivative: not offered, and said in words.
class AttentionBackward : public torch::autograd::Function<AttentionBackward> {
 public:
  static variable_list forward(AutogradContext*, const at::Tensor& grad_out,
                               const std::optional<at::Tensor>& grad_lse, const at::Tensor& query,
                               const at::Tensor& key, const at::Tensor& value,
                               const ForwardResult& saved, const CallOptions& options,
                               std::array<bool, 4> needed) {
    const at::AutoDispatchBelowADInplaceOrView below;
    auto [d_query, d_key, d_value, d_bias] =
        call_backward(grad_out, grad_lse, query, key, value, saved, options, needed);
    return {d_query, d_key, d_value, d_bias};
  }

  static variable_list backward(AutogradContext*, const variable_list&) {
    TORCH_CHECK_NOT_IMPLEMENTED(
        false,
        "flash::attention: expected a first derivative, got a request for a second one, which is "
        "not implemented; use flash::standard_attention, which has any number of derivatives in "
        "O(L S) memory");
  }
};

BackwardResult backward_autograd(const at::Tensor& grad_out,
                                 const std::optional<at::Tensor>& grad_lse, const at::Tensor& query,
                                 const at::Tensor& key, const at::Tensor& value,
                                 const at::Tensor& out, const at::Tensor& row_stats,
                                 const at::Tensor& seed,
                                 const std::optional<at::Tensor>& bias, bool causal,
                                 const std::optional<at::Tensor>& query_positions,
                                 std::optional<double> scale, double dropout, int64_t block_size,
                                 bool use_simd, std::array<bool, 4> needed) {
  const ForwardResult saved(out, row_stats, seed);
  const CallOptions options = {bias, causal, query_positions, scale, dropout, block_size, use_simd};
  if (!at::GradMode::is_enabled()) {
    const at::AutoDispatchBelowADInplaceOrView below;
    return call_backward(grad_out, grad_lse, query, key, value, saved, options, needed);
  }
  const variable_list grads =
      AttentionBackward::apply(grad_out, grad_lse, query, key, value, saved, options, needed);
  return {grads[0], grads[1], grads[2], grads[3]};
}

class Attention : public torch::autograd::Function<Attention> {
 public:
  /// causal, scale, dropout, block_size, use_simd.
  using SavedOptions = std::tuple<bool, std::optional<double>, double, int64_t, bool>;

  static variable_list forward(AutogradContext* ctx, const at::Tensor& query, const at::Tensor& key,
                               const at::Tensor& value, const std::optional<at::Tensor>& bias,
                               const CallOptions& o, bool with_lse) {
    const at::AutoDispatchBelowADInplaceOrView below;
    auto [out, row_stats, seed] = call_forward(query, key, value, o);
    // Without dropout the seed is an empty tensor: to make another costs less than to save it.
    ctx->save_for_backward({query, key, value, bias.value_or(at::Tensor()),
                            o.query_positions.value_or(at::Tensor()), out, row_stats,
                            o.dropout > 0 ? seed : at::Tensor()});
    // One entry: each costs a string, a hash and a node of the map.
    ctx->saved_data["options"] =
        SavedOptions(o.causal, o.scale, o.dropout, o.block_size, o.use_simd);
    ctx->set_materialize_grads(false);
    if (with_lse) return {out, log_sum_exp(row_stats)};
    return {out};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const variable_list saved = ctx->get_saved_variables();
    const auto optional = [](const at::Tensor& t) {
      return t.defined() ? std::optional<at::Tensor>(t) : std::nullopt;
    };
    const at::Tensor& out = saved[5];
    const auto [causal, scale, dropout, block_size, use_simd] =
        ctx->saved_data["options"].to<SavedOptions>();
    const CallOptions options = {optional(saved[3]), causal,     optional(saved[4]), scale,
                                 dropout,            block_size, use_simd};
    variable_list result(6);
    const std::array<bool, 4> needed = {ctx->needs_input_grad(0), ctx->needs_input_grad(1),
                                        ctx->needs_input_grad(2),
                                        options.bias.has_value() && ctx->needs_input_grad(3)};
    const bool has_lse_grad = grads.size() > 1 && grads[1].defined();
    if (!grads[0].defined() && !has_lse_grad) return result;
    const at::Tensor grad_out = grads[0].defined() ? grads[0] : at::zeros_like(out);
    const at::Tensor seed =
        saved[7].defined() ? saved[7] : at::empty({0}, out.options().dtype(at::kLong));
    const auto [d_query, d_key, d_value, d_bias] = call_backward(
        grad_out, has_lse_grad ? std::optional<at::Tensor>(grads[1]) : std::nullopt, saved[0],
        saved[1], saved[2], ForwardResult(out, saved[6], seed), options, needed);
    if (needed[0]) result[0] = d_query;
    if (needed[1]) result[1] = d_key;
    if (needed[2]) result[2] = d_value;
    if (needed[3]) result[3] = d_bias;
    return result;
  }
};

variable_list apply(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                    const CallOptions& options, bool with_lse) {
  return Attention::apply(query, key, value, options.bias, options, with_lse);
}

bool has_tangent(const at::Tensor& t) { return t._fw_grad(/*level=*/0).defined(); }

bool wants_grad(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                const std::optional<at::Tensor>& bias) {
  TORCH_CHECK_NOT_IMPLEMENTED(
      !has_tangent(query) && !has_tangent(key) && !has_tangent(value) &&
          !(bias.has_value() && has_tangent(*bias)),
      "flash::attention: expected inputs without tangents, got a dual tensor; forward-mode "
      "derivatives are not implemented, use flash::standard_attention");
  return at::GradMode::is_enabled() &&
         (query.requires_grad() || key.requires_grad() || value.requires_grad() ||
          (bias.has_value() && bias->requires_grad()));
}

at::Tensor attention_autograd(const at::Tensor& query, const at::Tensor& key,
                              const at::Tensor& value, const std::optional<at::Tensor>& bias,
                              bool causal, const std::optional<at::Tensor>& query_positions,
                              std::optional<double> scale, double dropout, int64_t block_size,
                              bool use_simd) {
  const CallOptions options = {bias, causal, query_positions, scale, dropout, block_size, use_simd};
  if (wants_grad(query, key, value, bias)) return apply(query, key, value, options, false)[0];
  // Nothing is saved: neither the statistics nor the seed need tensors of their own.
  const at::AutoDispatchBelowADInplaceOrView below;
  return call_attention(query, key, value, options);
}

std::tuple<at::Tensor, at::Tensor> attention_with_lse_autograd(
    const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
    const std::optional<at::Tensor>& bias, bool causal,
    const std::optional<at::Tensor>& query_positions, std::optional<double> scale, double dropout,
    int64_t block_size, bool use_simd) {
  const CallOptions options = {bias, causal, query_positions, scale, dropout, block_size, use_simd};
  if (wants_grad(query, key, value, bias)) {
    const variable_list result = apply(query, key, value, options, true);
    return {result[0], result[1]};
  }
  const at::AutoDispatchBelowADInplaceOrView below;
  const auto [out, row_stats, seed] = call_forward(query, key, value, options);
  return {out, log_sum_exp(row_stats)};
}

}  // namespace
}  // namespace flash

TORCH_LIBRARY_IMPL(flash, Autograd, m) {
  m.impl("attention", flash::attention_autograd);
  m.impl("attention_with_lse", flash::attention_with_lse_autograd);
  m.impl("_backward", flash::backward_autograd);
}
