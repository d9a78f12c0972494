// Autograd: the forward saves its inputs, its output and two statistics per row; the backward
// recomputes the weights.

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <flash_attention/ops.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/dynamo/compiled_autograd.h>
#include <torch/library.h>

#include <algorithm>
#include <mutex>

#include "ops/double_backward.h"
#include "ops/dtypes.h"
#include "ops/forward_backward.h"
#include "ops/results.h"
#include "ops/saved_options.h"
#include "ops/unsupported_derivative.h"

namespace flash {
namespace {

using torch::autograd::SavedVariable;
using torch::autograd::variable_list;

variable_list to_list(BackwardResult result) {
  return std::apply([](auto&... each) { return variable_list{std::move(each)...}; }, result);
}

at::Tensor defined_or_empty(const std::optional<at::Tensor>& t) { return t.value_or(at::Tensor()); }

SavedVariable saved(const at::Tensor& t) { return {t, /*is_output=*/false}; }
SavedVariable saved(const std::optional<at::Tensor>& t) {
  return t.has_value() ? saved(*t) : SavedVariable();
}

bool has_tangent(const at::Tensor& t) { return t.defined() && t._fw_grad(/*level=*/0).defined(); }

/// The inputs that the operator is differentiable in; undefined where the call has none.
std::array<at::Tensor, kDifferentiable> differentiable_inputs(const at::Tensor& query,
                                                              const at::Tensor& key,
                                                              const at::Tensor& value,
                                                              const AttentionOptions& o) {
  return {query,
          key,
          value,
          defined_or_empty(o.bias()),
          defined_or_empty(o.alibi_slopes()),
          defined_or_empty(o.sinks())};
}

/// The node of a recorded flash::_backward, for second derivatives.
class AttentionBackwardNode : public torch::autograd::Node {
 public:
  explicit AttentionBackwardNode(const BackwardCallInputs& call)
      : inputs_{saved(call.grad_out), saved(call.grad_lse), saved(call.query), saved(call.key),
                saved(call.value)},
        options_(call.options),
        seed_(call.seed) {
    const AttentionOptions& o = call.options;
    set_next_edges(torch::autograd::collect_next_edges(call.grad_out, call.grad_lse, call.query,
                                                       call.key, call.value, o.bias(),
                                                       o.alibi_slopes(), o.sinks()));
  }

  variable_list apply(variable_list&& cotangents) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    BackwardCallInputs call;
    call.grad_out = inputs_[0].unpack();
    call.grad_lse = optional_tensor(inputs_[1].unpack());
    call.query = inputs_[2].unpack();
    call.key = inputs_[3].unpack();
    call.value = inputs_[4].unpack();
    call.options = options_.unpack();
    call.seed = seed_;
    std::array<at::Tensor, kDifferentiable> given;
    std::copy_n(cotangents.begin(), kDifferentiable, given.begin());
    std::array<bool, kTwiceDifferentiable> wanted;
    for (size_t i = 0; i < wanted.size(); ++i) wanted[i] = task_should_compute_output(i);
    const auto found = second_gradients(call, given, wanted);
    variable_list result(found.begin(), found.end());
    for_each_saved([&](SavedVariable& input) { cotangents.push_back(input.unpack()); });
    UnsupportedDerivative::attach(
        "flash::attention: expected a first or second derivative, got a request for a third one, "
        "which is not implemented; use flash::standard_attention, which has any number of "
        "derivatives in O(L S) memory",
        cotangents, result);
    return result;
  }

  std::string name() const override { return "FlashAttentionBackwardBackward"; }

  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    for_each_saved([](SavedVariable& input) { input.reset_data(); });
  }

 private:
  template <class Visitor>
  void for_each_saved(Visitor&& visit) {
    for (SavedVariable& input : inputs_) visit(input);
    for (SavedVariable& tensor : options_.tensors()) visit(tensor);
  }

  std::array<SavedVariable, 5> inputs_;  // grad_out, grad_lse, query, key, value
  SavedOptions options_;
  at::Tensor seed_;  // a plain tensor: it is never modified, and has no derivative
};

BackwardResult backward_autograd(const at::Tensor& grad_out,
                                 const std::optional<at::Tensor>& grad_lse, const at::Tensor& query,
                                 const at::Tensor& key, const at::Tensor& value,
                                 const at::Tensor& out, const at::Tensor& row_stats,
                                 const at::Tensor& seed, const AttentionOptions& options,
                                 Needed needed) {
  variable_list result;
  {
    const at::AutoDispatchBelowADInplaceOrView below;
    result = to_list(call_backward(grad_out, grad_lse, query, key, value, {out, row_stats, seed},
                                   options, needed));
  }
  const BackwardCallInputs call = {grad_out, grad_lse, query, key, value, options, seed};
  bool tangents = has_tangent(grad_out) || has_tangent(defined_or_empty(grad_lse));
  for (const at::Tensor& t : differentiable_inputs(query, key, value, options))
    tangents |= has_tangent(t);
  if (tangents) {
    const auto found = gradient_tangents(call, needed);
    for (size_t i = 0; i < result.size(); ++i) {
      if (needed[i] && found[i].defined()) {
        result[i]._set_fw_grad(found[i], /*level=*/0, /*is_inplace_op=*/false);
      }
    }
  }
  if (torch::autograd::compute_requires_grad(grad_out, grad_lse, query, key, value, options.bias(),
                                             options.alibi_slopes(), options.sinks())) {
    const auto node = c10::make_intrusive<AttentionBackwardNode>(call);
    for (size_t i = 0; i < result.size(); ++i) {
      // In order, so that output i of the node is gradient i.
      torch::autograd::create_gradient_edge(result[i], node);
    }
  }
  return std::apply([](auto&... each) { return BackwardResult(each...); },
                    std::tie(result[0], result[1], result[2], result[3], result[4], result[5]));
}

/// The node of one recorded call. Not an autograd::Function: that keeps a map of named values and
/// the sizes of every input, which for a short sequence takes as long as the attention.
class AttentionNode : public torch::autograd::Node {
 public:
  AttentionNode(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                const AttentionOptions& o)
      : inputs_{saved(query), saved(key), saved(value)}, options_(o) {
    set_next_edges(torch::autograd::collect_next_edges(query, key, value, o.bias(),
                                                       o.alibi_slopes(), o.sinks()));
  }

  /// Must be called after this node has become the grad_fn of the outputs. `is_output`: whether the
  /// out of `result` is one of them.
  void save_results(const ForwardResult& result, bool is_output) {
    const auto& [out, row_stats, seed] = result;
    saves_output_ = is_output;
    out_ = SavedVariable(out, is_output);
    row_stats_ = saved(row_stats);
    // Without dropout the seed is an empty tensor, which is cheaper to create again than to save.
    if (has_dropout()) seed_ = saved(seed);
  }

  variable_list apply(variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    return gradients(grads);
  }

  std::string name() const override { return "FlashAttentionBackward"; }

  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    for_each_saved([](SavedVariable& tensor, bool) { tensor.reset_data(); });
  }

  // For compiled autograd, which traces `apply` with proxies for the saved tensors.
  void compiled_args(torch::dynamo::autograd::CompiledNodeArgs& args) const override {
    auto& self = const_cast<AttentionNode&>(*this);
    self.for_each_saved([&](SavedVariable& t, bool is_output) { args.collect(t, is_output); });
    options_.collect_settings(args);
  }

  variable_list apply_with_saved(const variable_list& grads,
                                 torch::dynamo::autograd::SwapSavedVariables& saved) override {
    for_each_saved([&](SavedVariable& tensor, bool) { saved.before(tensor); });
    variable_list result = gradients(grads);
    for_each_saved([&](SavedVariable& tensor, bool) { saved.after(tensor); });
    return result;
  }

 private:
  bool has_dropout() const { return options_.settings().dropout() > 0; }

  /// Calls visit(tensor, whether it is an output of this node).
  template <class Visitor>
  void for_each_saved(Visitor&& visit) {
    for (SavedVariable& input : inputs_) visit(input, false);
    for (SavedVariable& tensor : options_.tensors()) visit(tensor, false);
    visit(out_, saves_output_);
    visit(row_stats_, false);
    visit(seed_, false);
  }

  variable_list gradients(const variable_list& grads) {
    const bool has_lse_grad = grads.size() > 1 && grads[1].defined();
    if (!grads[0].defined() && !has_lse_grad) return variable_list(kDifferentiable);

    const at::Tensor out = out_.unpack(getptr());
    const at::Tensor grad_out = grads[0].defined() ? grads[0] : at::zeros_like(out);
    const at::Tensor seed =
        has_dropout() ? seed_.unpack() : at::empty({0}, out.options().dtype(at::kLong));
    Needed needed;
    for (size_t i = 0; i < kDifferentiable; ++i) needed[i] = task_should_compute_output(i);
    variable_list result = to_list(
        call_backward(grad_out, has_lse_grad ? std::optional<at::Tensor>(grads[1]) : std::nullopt,
                      inputs_[0].unpack(), inputs_[1].unpack(), inputs_[2].unpack(),
                      {out, row_stats_.unpack(), seed}, options_.unpack(), needed));
    for (size_t i = 0; i < kDifferentiable; ++i) {
      if (!needed[i]) result[i] = at::Tensor();
    }
    return result;
  }

  std::array<SavedVariable, 3> inputs_;  // query, key, value
  SavedOptions options_;
  SavedVariable out_, row_stats_, seed_;
  bool saves_output_ = true;
};

/// Runs the forward and records it; lse is undefined unless `with_lse`. With `forward`, out is left
/// in the dtype that the kernels compute in, and `forward` receives all of their results.
LseResult record(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                 const AttentionOptions& options, bool with_lse, ForwardResult* forward = nullptr) {
  const auto node = c10::make_intrusive<AttentionNode>(query, key, value, options);
  ForwardResult result;
  at::Tensor lse;
  {
    const at::AutoDispatchBelowADInplaceOrView below;
    result = call_forward(query, key, value, options);
    if (with_lse) lse = log_sum_exp(std::get<1>(result));
  }
  const at::ScalarType dtype = query.scalar_type();
  const bool rounds = forward == nullptr && compute_dtype(dtype) != dtype;
  at::Tensor out = std::get<0>(result);
  if (rounds) {
    const at::AutoDispatchBelowADInplaceOrView below;
    out = in_dtype(out, dtype);
  }
  torch::autograd::set_history(out, node);
  if (with_lse) torch::autograd::set_history(lse, node);
  node->save_results(result, /*is_output=*/!rounds);
  if (forward != nullptr) *forward = result;
  return {out, lse};
}

/// Both results with their tangents, and recorded if `gradients`.
LseResult with_tangents(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                        const AttentionOptions& options, bool gradients) {
  at::Tensor seed;
  LseResult result;
  if (gradients) {
    ForwardResult forward;
    result = record(query, key, value, options, /*with_lse=*/true, &forward);
    seed = std::get<2>(forward);
  } else {
    const at::AutoDispatchBelowADInplaceOrView below;
    const auto [out, row_stats, drawn] = call_forward(query, key, value, options);
    result = {out, log_sum_exp(row_stats)};
    seed = drawn;
  }
  const ForwardTangents tangents = forward_tangents(query, key, value, options, seed);
  auto& [out, lse] = result;
  out = in_dtype(out, query.scalar_type());
  out._set_fw_grad(tangents.out, /*level=*/0, /*is_inplace_op=*/false);
  lse._set_fw_grad(tangents.lse, /*level=*/0, /*is_inplace_op=*/false);
  return result;
}

/// Which derivatives a call has to provide.
struct RequestedDerivatives {
  RequestedDerivatives(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                       const AttentionOptions& options) {
    for (const at::Tensor& t : differentiable_inputs(query, key, value, options)) {
      gradients |= t.defined() && t.requires_grad();
      tangents |= has_tangent(t);
    }
    gradients &= at::GradMode::is_enabled();
  }
  bool gradients = false;
  bool tangents = false;
};

/// flash::_forward with derivatives and tangents of out and row_stats: for functorch levels below
/// one that records the call. row_max is treated as a constant, since no result depends on its
/// choice.
ForwardResult forward_autograd(const at::Tensor& query, const at::Tensor& key,
                               const at::Tensor& value, const AttentionOptions& options) {
  const RequestedDerivatives requested(query, key, value, options);
  ForwardResult result;
  at::Tensor lse;
  if (requested.gradients) {
    lse = std::get<1>(record(query, key, value, options, /*with_lse=*/true, &result));
  } else {
    const at::AutoDispatchBelowADInplaceOrView below;
    result = call_forward(query, key, value, options);
  }
  auto& [out, row_stats, seed] = result;
  if (requested.gradients) {
    const at::Tensor row_max = row_stats.select(0, 0), row_sum = row_stats.select(0, 1);
    // d row_sum = row_sum d lse. The value of row_sum stays the same to the last bit.
    const at::Tensor change = row_sum * lse.masked_fill(row_sum == 0, 0.0);
    row_stats = at::stack({row_max, row_sum + (change - change.detach())});
  }
  if (requested.tangents) {
    const ForwardTangents tangents = forward_tangents(query, key, value, options, seed);
    out._set_fw_grad(in_dtype(tangents.out, out.scalar_type()), /*level=*/0,
                     /*is_inplace_op=*/false);
    const at::Tensor row_sum = row_stats.select(0, 1);
    const at::Tensor of_sum = (row_sum * tangents.lse).masked_fill(row_sum == 0, 0.0);
    row_stats._set_fw_grad(at::stack({at::zeros_like(of_sum), of_sum}), /*level=*/0,
                           /*is_inplace_op=*/false);
  }
  return result;
}

LseResult attention_with_lse_autograd(const at::Tensor& query, const at::Tensor& key,
                                      const at::Tensor& value, const AttentionOptions& options) {
  const RequestedDerivatives requested(query, key, value, options);
  if (requested.gradients && !requested.tangents) {
    return record(query, key, value, options, /*with_lse=*/true);
  }
  if (requested.tangents) return with_tangents(query, key, value, options, requested.gradients);
  const at::AutoDispatchBelowADInplaceOrView below;
  return attention_with_lse(query, key, value, options);
}

at::Tensor attention_autograd(const at::Tensor& query, const at::Tensor& key,
                              const at::Tensor& value, const AttentionOptions& options) {
  const RequestedDerivatives requested(query, key, value, options);
  if (requested.tangents) {
    return std::get<0>(with_tangents(query, key, value, options, requested.gradients));
  }
  if (requested.gradients) {
    return std::get<0>(record(query, key, value, options, /*with_lse=*/false));
  }
  // Nothing is saved: neither the statistics nor the seed need tensors of their own.
  const at::AutoDispatchBelowADInplaceOrView below;
  return attention(query, key, value, options);
}

}  // namespace
}  // namespace flash

TORCH_LIBRARY_IMPL(flash, Autograd, m) {
  using namespace flash;
  m.impl("attention", AttentionOperator<at::Tensor>::kernel<attention_autograd>);
  m.impl("attention_with_lse", AttentionOperator<LseResult>::kernel<attention_with_lse_autograd>);
  m.impl("_forward", ForwardOperator::kernel<forward_autograd>);
  m.impl("_backward", BackwardOperator::kernel<backward_autograd>);
}
