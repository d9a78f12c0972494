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
                                 const at::Tensor& seed, const std::optional<at::Tensor>& bias,
                                 bool causal, const std::optional<at::Tensor>& query_positions,
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

/// The node of one recorded call. Written out, not an autograd::Function: that keeps a map of named
/// values and the sizes of every input, which on a short sequence costs as much as the attention.
class AttentionNode : public torch::autograd::Node {
 public:
  AttentionNode(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                const CallOptions& o)
      : inputs_{saved(query), saved(key), saved(value), saved(o.bias), saved(o.query_positions)},
        causal_(o.causal),
        scale_(o.scale),
        dropout_(o.dropout),
        block_size_(o.block_size),
        use_simd_(o.use_simd) {
    set_next_edges(torch::autograd::collect_next_edges(query, key, value, o.bias));
  }

  /// To be called once the outputs have this node as their history.
  void save_results(const ForwardResult& result) {
    const auto& [out, row_stats, seed] = result;
    out_ = SavedVariable(out, /*is_output=*/true);
    row_stats_ = saved(row_stats);
    // Without dropout the seed is an empty tensor: to make another costs less than to save it.
    if (dropout_ > 0) seed_ = saved(seed);
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
    args.collect(causal_);
    args.collect(scale_.has_value());
    args.collect(scale_.value_or(0.0));
    args.collect(dropout_);
    args.collect(block_size_);
    args.collect(use_simd_);
  }

  variable_list apply_with_saved(const variable_list& grads,
                                 torch::dynamo::autograd::SwapSavedVariables& saved) override {
    for_each_tensor([&](SavedVariable& tensor, bool) { saved.before(tensor); });
    variable_list result = gradients(grads);
    for_each_tensor([&](SavedVariable& tensor, bool) { saved.after(tensor); });
    return result;
  }

 private:
  static constexpr size_t kInputs = 4;  // query, key, value, bias

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
    variable_list result(kInputs);
    if (!grads[0].defined() && !has_lse_grad) return result;

    const at::Tensor out = out_.unpack(getptr());
    const at::Tensor grad_out = grads[0].defined() ? grads[0] : at::zeros_like(out);
    const at::Tensor seed =
        dropout_ > 0 ? seed_.unpack() : at::empty({0}, out.options().dtype(at::kLong));
    const std::optional<at::Tensor> bias = optional(inputs_[3].unpack());
    const std::array<bool, kInputs> needed = {
        task_should_compute_output(0), task_should_compute_output(1), task_should_compute_output(2),
        bias.has_value() && task_should_compute_output(3)};
    const CallOptions options = {
        bias, causal_, optional(inputs_[4].unpack()), scale_, dropout_, block_size_, use_simd_};
    auto [d_query, d_key, d_value, d_bias] =
        call_backward(grad_out, has_lse_grad ? std::optional<at::Tensor>(grads[1]) : std::nullopt,
                      inputs_[0].unpack(), inputs_[1].unpack(), inputs_[2].unpack(),
                      ForwardResult(out, row_stats_.unpack(), seed), options, needed);
    if (needed[0]) result[0] = std::move(d_query);
    if (needed[1]) result[1] = std::move(d_key);
    if (needed[2]) result[2] = std::move(d_value);
    if (needed[3]) result[3] = std::move(d_bias);
    return result;
  }

  std::array<SavedVariable, 5> inputs_;  // query, key, value, bias, query_positions
  SavedVariable out_, row_stats_, seed_;
  bool causal_;
  std::optional<double> scale_;
  double dropout_;
  int64_t block_size_;
  bool use_simd_;
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
  if (wants_grad(query, key, value, bias)) {
    return std::get<0>(record(query, key, value, options, /*with_lse=*/false));
  }
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
    return record(query, key, value, options, /*with_lse=*/true);
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
