#include "layers/common/linear.h"

#include <ATen/Parallel.h>
#include <ATen/autocast_mode.h>
#include <torch/torch.h>

#include <optional>

#include "layers/common/linear_blocks.h"

namespace flash::models {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// Whether matrix_product computes this layer. ATen computes the others, and reports what does not
/// fit together.
bool fits_product(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
  const auto fits = [&](const at::Tensor& t, int64_t dimensions) {
    return t.dim() == dimensions && t.is_cpu() && t.scalar_type() == x.scalar_type() && is_plain(t);
  };
  return fits_kernels(x) && is_plain(x) && fits(weight, 2) && x.dim() >= 2 && x.numel() > 0 &&
         x.size(-1) == weight.size(1) &&
         (!bias.defined() || (fits(bias, 1) && bias.size(0) == weight.size(0)));
}

at::Tensor by_aten(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
  return bias.defined() ? at::linear(x, weight, bias) : at::linear(x, weight);
}

class Linear : public torch::autograd::Function<Linear> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& weight,
                            const std::optional<at::Tensor>& bias) {
    context->save_for_backward({x, weight});
    context->saved_data["has_bias"] = bias.has_value();
    return product(x, weight, bias.value_or(at::Tensor()));
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const variable_list saved = context->get_saved_variables();
    const at::Tensor &x = saved[0], &weight = saved[1], &g = gradients[0];
    if (!g.defined()) return {{}, {}, {}};
    const at::Tensor rows = g.reshape({-1, g.size(-1)});
    at::Tensor of_x, of_weight, of_bias;
    if (context->needs_input_grad(0)) of_x = product(rows, weight.t()).view_as(x);
    if (context->needs_input_grad(1)) {
      of_weight = weight_gradient(rows, x.reshape({-1, x.size(-1)}));
    }
    const bool has_bias = context->saved_data["has_bias"].toBool();
    if (has_bias && context->needs_input_grad(2)) of_bias = rows.sum(0);
    return {of_x, of_weight, of_bias};
  }
};

}  // namespace

bool fits_kernels(const at::Tensor& x) {
  return x.is_cpu() && (x.scalar_type() == at::kFloat || x.scalar_type() == at::kDouble) &&
         !at::autocast::is_autocast_enabled(at::kCPU);
}

bool is_plain(const at::Tensor& x) {
  const c10::DispatchKeySet wrappers(
      {c10::DispatchKey::FuncTorchBatched, c10::DispatchKey::FuncTorchGradWrapper});
  return !x.key_set().has_any(wrappers) && !x._fw_grad(/*level=*/0).defined();
}

at::Tensor product(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
  if (at::GradMode::is_enabled() || !fits_product(x, weight, bias)) return by_aten(x, weight, bias);
  const at::AutoDispatchBelowADInplaceOrView guard;
  const at::Tensor rows = x.reshape({-1, x.size(-1)}).contiguous();
  const bool is_readable = weight.stride(0) == 1 || weight.stride(1) == 1;
  const at::Tensor out = at::empty({rows.size(0), weight.size(0)}, x.options());
  linear_into(rows, {is_readable ? weight : weight.contiguous(), bias}, out);
  auto sizes = x.sizes().vec();
  sizes.back() = weight.size(0);
  return out.view(sizes);
}

at::Tensor weight_gradient(const at::Tensor& g, const at::Tensor& x) {
  if (at::GradMode::is_enabled() || !fits_kernels(x)) return g.t().mm(x);
  const at::Tensor out = at::empty({g.size(1), x.size(1)}, x.options());
  matrix_product(g.t(), x.contiguous(), out);
  return out;
}

at::Tensor batched_product(const at::Tensor& left, const at::Tensor& right) {
  if (at::GradMode::is_enabled() || !fits_kernels(left) || !is_plain(left)) return left.bmm(right);
  const bool is_readable = right.stride(1) == 1 || right.stride(2) == 1;
  const at::Tensor readable = is_readable ? right : right.contiguous();
  const at::Tensor out = at::empty({left.size(0), left.size(1), right.size(2)}, left.options());
  at::parallel_for(0, left.size(0), 1, [&](int64_t begin, int64_t end) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    for (int64_t i = begin; i < end; ++i) matrix_product(left[i], readable[i], out[i]);
  });
  return out;
}

at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
  if (!fits_product(x, weight, bias)) return by_aten(x, weight, bias);
  if (!at::GradMode::is_enabled()) return product(x, weight, bias);
  return Linear::apply(x, weight, bias.defined() ? std::make_optional(bias) : std::nullopt);
}

}  // namespace flash::models
