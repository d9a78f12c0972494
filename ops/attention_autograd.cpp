// Autograd: the forward saves its inputs, its output and two numbers per row; the backward computes
// the weights again.

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <flash_attention/ops.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/dynamo/compiled_autograd.h>
#include <torch/library.h>

#include <mutex>

#include "ops/operator.h"

namespace flash {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::SavedVariable;
using torch::autograd::variable_list;

variable_list to_list(BackwardResult result) {
  return std::apply([](auto&... each) { return variable_list{std::move(each)...}; }, result);
}

/// The second derivative: not offered, and said in words.
class AttentionBackward : public torch::autograd::Function<AttentionBackward> {
 public:
  static variable_list forward(AutogradContext*, const at::Tensor& grad_out,
                               const std::optional<at::Tensor>& grad_lse, const at::Tensor& query,
                               const at::Tensor& key, const at::Tensor& value,
                               const ForwardResult& saved, const CallOptions& options,
                               const Needed& needed) {
    const at::AutoDispatchBelowADInplaceOrView below;
    return to_list(call_backward(grad_out, grad_lse, query, key, value, saved, options, needed));
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
                                 const at::Tensor& seed, const CallOptions& options,
                                 Needed needed) {
  const ForwardResult saved(out, row_stats, seed);
  if (!at::GradMode::is_enabled()) {
    const at::AutoDispatchBelowADInplaceOrView below;
    return call_backward(grad_out, grad_lse, query, key, value, saved, options, needed);
  }
  const variable_list g =
      AttentionBackward::apply(grad_out, grad_lse, query, key, value, saved, options, needed);
  return {g[0], g[1], g[2], g[3], g[4], g[5]};
}

/// The node of one recorded call. Written out, not an autograd::Function: that keeps a map of named
/// values and the sizes of every input, which on a short sequence costs as much as the attention.
class AttentionNode : public torch::autograd::Node {
 public:
  AttentionNode(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                const CallOptions& o)
      : inputs_{saved(query),
                saved(key),
                saved(value),
                saved(o.bias),
                saved(o.alibi_slopes),
                saved(o.sinks),
                saved(o.query_positions)},
        options_(o) {
    // They are in `inputs_`, where autograd sees to their versions.
    for (auto* tensor :
         {&options_.bias, &options_.alibi_slopes, &options_.sinks, &options_.query_positions}) {
      tensor->reset();
    }
    set_next_edges(
        torch::autograd::collect_next_edges(query, key, value, o.bias, o.alibi_slopes, o.sinks));
  }

  /// To be called once the outputs have this node as their history.
  void save_results(const ForwardResult& result) {
    const auto& [out, row_stats, seed] = result;
    out_ = SavedVariable(out, /*is_output=*/true);
    row_stats_ = saved(row_stats);
    // Without dropout the seed is an empty tensor: to make another costs less than to save it.
    if (options_.dropout > 0) seed_ = saved(seed);
  }

  variable_list apply(variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    return gradients(grads);
  }

  std::string name() const override { return "FlashAttentionBackward"; }

  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    for_each_tensor([](SavedVariable& tensor, bool) { tensor.reset_data(); });
  }

  // For compiled autograd, which records `apply` on stand-ins of what is saved.
  void compiled_args(torch::dynamo::autograd::CompiledNodeArgs& args) const override {
    auto& self = const_cast<AttentionNode&>(*this);
    self.for_each_tensor([&](SavedVariable& t, bool is_output) { args.collect(t, is_output); });
    args.collect(options_.causal);
    args.collect(options_.window.left);
    args.collect(options_.window.right);
    args.collect(options_.softcap);
    args.collect(options_.scale.has_value());
    args.collect(options_.scale.value_or(0.0));
    args.collect(options_.dropout);
    args.collect(options_.block_size);
    args.collect(options_.use_simd);
  }

  variable_list apply_with_saved(const variable_list& grads,
                                 torch::dynamo::autograd::SwapSavedVariables& saved) override {
    for_each_tensor([&](SavedVariable& tensor, bool) { saved.before(tensor); });
    variable_list result = gradients(grads);
    for_each_tensor([&](SavedVariable& tensor, bool) { saved.after(tensor); });
    return result;
  }

 private:
  static SavedVariable saved(const at::Tensor& t) { return {t, /*is_output=*/false}; }
  static SavedVariable saved(const std::optional<at::Tensor>& t) {
    return t.has_value() ? saved(*t) : SavedVariable();
  }
  static std::optional<at::Tensor> optional(const at::Tensor& t) {
    return t.defined() ? std::optional<at::Tensor>(t) : std::nullopt;
  }

  /// Calls visit(tensor, whether it is an output of this node).
  template <class Visitor>
  void for_each_tensor(Visitor&& visit) {
    for (SavedVariable& input : inputs_) visit(input, false);
    visit(out_, true);
    visit(row_stats_, false);
    visit(seed_, false);
  }

  variable_list gradients(const variable_list& grads) {
    const bool has_lse_grad = grads.size() > 1 && grads[1].defined();
    if (!grads[0].defined() && !has_lse_grad) return variable_list(kDifferentiable);

    const at::Tensor out = out_.unpack(getptr());
    const at::Tensor grad_out = grads[0].defined() ? grads[0] : at::zeros_like(out);
    const at::Tensor seed =
        options_.dropout > 0 ? seed_.unpack() : at::empty({0}, out.options().dtype(at::kLong));
    CallOptions options = options_;
    options.bias = optional(inputs_[3].unpack());
    options.alibi_slopes = optional(inputs_[4].unpack());
    options.sinks = optional(inputs_[5].unpack());
    options.query_positions = optional(inputs_[6].unpack());
    Needed needed;
    for (size_t i = 0; i < kDifferentiable; ++i) needed[i] = task_should_compute_output(i);
    variable_list result = to_list(
        call_backward(grad_out, has_lse_grad ? std::optional<at::Tensor>(grads[1]) : std::nullopt,
                      inputs_[0].unpack(), inputs_[1].unpack(), inputs_[2].unpack(),
                      ForwardResult(out, row_stats_.unpack(), seed), options, needed));
    for (size_t i = 0; i < kDifferentiable; ++i) {
      if (!needed[i]) result[i] = at::Tensor();
    }
    return result;
  }

  // query, key, value, bias, alibi_slopes, sinks, query_positions
  std::array<SavedVariable, kDifferentiable + 1> inputs_;
  SavedVariable out_, row_stats_, seed_;
  CallOptions options_;
};

/// Runs the forward and records it; lse only where it is asked for.
std::tuple<at::Tensor, at::Tensor> record(const at::Tensor& query, const at::Tensor& key,
                                          const at::Tensor& value, const CallOptions& options,
                                          bool with_lse) {
  const auto node = c10::make_intrusive<AttentionNode>(query, key, value, options);
  ForwardResult result;
  at::Tensor lse;
  {
    const at::AutoDispatchBelowADInplaceOrView below;
    result = call_forward(query, key, value, options);
    if (with_lse) lse = log_sum_exp(std::get<1>(result));
  }
  const at::Tensor& out = std::get<0>(result);
  torch::autograd::set_history(out, node);
  if (with_lse) torch::autograd::set_history(lse, node);
  node->save_results(result);
  return {out, lse};
}

bool has_tangent(const at::Tensor& t) { return t._fw_grad(/*level=*/0).defined(); }

/// The tensors that the operator has a derivative by; undefined where there is none.
std::array<at::Tensor, kDifferentiable> differentiable(const at::Tensor& query,
                                                       const at::Tensor& key,
                                                       const at::Tensor& value,
                                                       const CallOptions& o) {
  const auto tensor = [](const std::optional<at::Tensor>& t) { return t.value_or(at::Tensor()); };
  return {query, key, value, tensor(o.bias), tensor(o.alibi_slopes), tensor(o.sinks)};
}

bool wants_grad(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                const CallOptions& options) {
  bool requires_grad = false;
  for (const at::Tensor& t : differentiable(query, key, value, options)) {
    if (!t.defined()) continue;
    TORCH_CHECK_NOT_IMPLEMENTED(
        !has_tangent(t),
        "flash::attention: expected inputs without tangents, got a dual tensor; forward-mode "
        "derivatives are not implemented, use flash::standard_attention");
    requires_grad |= t.requires_grad();
  }
  return requires_grad && at::GradMode::is_enabled();
}

at::Tensor attention_autograd(const at::Tensor& query, const at::Tensor& key,
                              const at::Tensor& value, const CallOptions& options) {
  if (wants_grad(query, key, value, options)) {
    return std::get<0>(record(query, key, value, options, /*with_lse=*/false));
  }
  // Nothing is saved: neither the statistics nor the seed need tensors of their own.
  const at::AutoDispatchBelowADInplaceOrView below;
  return call_attention(query, key, value, options);
}

LseResult attention_with_lse_autograd(const at::Tensor& query, const at::Tensor& key,
                                      const at::Tensor& value, const CallOptions& options) {
  if (wants_grad(query, key, value, options)) {
    return record(query, key, value, options, /*with_lse=*/true);
  }
  const at::AutoDispatchBelowADInplaceOrView below;
  const auto [out, row_stats, seed] = call_forward(query, key, value, options);
  return {out, log_sum_exp(row_stats)};
}

}  // namespace
}  // namespace flash

TORCH_LIBRARY_IMPL(flash, Autograd, m) {
  using namespace flash;
  m.impl("attention", AttentionCall<at::Tensor>::call<attention_autograd>);
  m.impl("attention_with_lse", AttentionCall<LseResult>::call<attention_with_lse_autograd>);
  m.impl("_backward", BackwardCall::call<backward_autograd>);
}
