#include "layers/common/linear.h"

#include <ATen/Version.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <flash_attention/matrix_product.h>
#include <torch/torch.h>

#include <optional>

#include "layers/common/linear_blocks.h"

namespace flash::models {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, scalars, algorithm).
using OneDnnLinear = at::Tensor(const at::Tensor&, const at::Tensor&,
                                const std::optional<at::Tensor>&, std::string_view,
                                c10::List<std::optional<at::Scalar>>,
                                std::optional<std::string_view>);

std::optional<c10::TypedOperatorHandle<OneDnnLinear>> find_onednn() {
  if (!FLASH_ATTENTION_ONEDNN || !at::globalContext().hasMKLDNN()) return std::nullopt;
  const auto found = c10::Dispatcher::singleton().findSchema({"mkldnn::_linear_pointwise", ""});
  if (!found) return std::nullopt;
  return found->typed<OneDnnLinear>();
}

const std::optional<c10::TypedOperatorHandle<OneDnnLinear>>& onednn() {
  static const auto operation = find_onednn();
  return operation;
}

/// With fewer multiplications, looking up oneDNN's kernel takes longer than it saves.
constexpr int64_t kFewest = int64_t{1} << 22;

bool is_large(const at::Tensor& x, const at::Tensor& weight) {
  const auto fits = [](const at::Tensor& t) { return t.is_cpu() && t.scalar_type() == at::kFloat; };
  return fits(x) && fits(weight) && x.numel() * weight.size(0) >= kFewest;
}

/// ATen's BLAS is MKL, which uses AVX-512 on some CPUs only, where oneDNN uses it on all. With AVX2
/// MKL is faster, the more so the fewer rows, because oneDNN lays out the weight in each call.
bool has_avx512() {
  static const bool found = at::get_cpu_capability().starts_with("AVX512");
  return found;
}

bool onednn_is_faster(const at::Tensor& x, const at::Tensor& weight) {
  return is_large(x, weight) && has_avx512() && at::globalContext().userEnabledMkldnn() &&
         onednn().has_value();
}

/// Of fewer elements, the time of an activation is that of its call.
constexpr int64_t kFewestElements = int64_t{1} << 14;

/// With fewer multiplications, packing the operands takes longer than tiles save.
constexpr int64_t kFewestOnTiles = int64_t{1} << 18;

/// Whether the tiles of the operator compute this layer.
bool on_tiles(const at::Tensor& x, const at::Tensor& weight) {
  return fits_kernels(x) && weight.is_cpu() && weight.scalar_type() == x.scalar_type() &&
         x.numel() * weight.size(0) >= kFewestOnTiles && is_plain(x) && is_plain(weight) &&
         matrix_product_uses_tiles(x.scalar_type());
}

at::Tensor through_tiles(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
  const at::AutoDispatchBelowADInplaceOrView guard;
  const at::Tensor rows = x.reshape({-1, x.size(-1)}).contiguous();
  const bool is_readable = weight.stride(0) == 1 || weight.stride(1) == 1;
  const at::Tensor out = at::empty({rows.size(0), weight.size(0)}, x.options());
  linear_into(rows, {is_readable ? weight : weight.contiguous(), bias}, out);
  auto sizes = x.sizes().vec();
  sizes.back() = weight.size(0);
  return out.view(sizes);
}

at::Tensor through_onednn(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                          std::string_view activation) {
  const at::AutoDispatchBelowADInplaceOrView guard;
  const at::Tensor rows = x.reshape({-1, x.size(-1)}).contiguous();
  const auto bias_or_none = bias.defined() ? std::make_optional(bias) : std::nullopt;
  at::Tensor out = onednn()->call(rows, weight, bias_or_none, activation,
                                  c10::List<std::optional<at::Scalar>>(), "none");
  auto sizes = x.sizes().vec();
  sizes.back() = weight.size(0);
  return out.view(sizes);
}

/// Large layers, for the choices of `product` and `weight_gradient`.
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
  if (!at::GradMode::is_enabled() && on_tiles(x, weight)) return through_tiles(x, weight, bias);
  if (!at::GradMode::is_enabled() && onednn_is_faster(x, weight)) {
    return through_onednn(x, weight, bias, "none");
  }
  return bias.defined() ? at::linear(x, weight, bias) : at::linear(x, weight);
}

at::Tensor weight_gradient(const at::Tensor& g, const at::Tensor& x) {
  if (at::GradMode::is_enabled() || !fits_kernels(x)) return g.t().mm(x);
  const at::Tensor out = at::empty({g.size(1), x.size(1)}, x.options());
  matrix_product(g.t(), x.contiguous(), out);
  return out;
}

at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
  const bool large = is_large(x, weight) && !at::autocast::is_autocast_enabled(at::kCPU);
  if (!large && !on_tiles(x, weight)) {
    return bias.defined() ? at::linear(x, weight, bias) : at::linear(x, weight);
  }
  return Linear::apply(x, weight, bias.defined() ? std::make_optional(bias) : std::nullopt);
}

at::Tensor activated_linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                            Activation activation) {
  const at::NoGradGuard no_grad;
  const bool relu = activation == Activation::kRelu;
  const bool tiles = on_tiles(x, weight);
  if (!tiles && onednn_is_faster(x, weight) && !at::autocast::is_autocast_enabled(at::kCPU)) {
    return through_onednn(x, weight, bias, relu ? "relu" : "gelu");
  }
  at::Tensor out = tiles            ? through_tiles(x, weight, bias)
                   : bias.defined() ? at::linear(x, weight, bias)
                                    : at::linear(x, weight);
  if (relu) return out.relu_();
  // Without dropout, for its activation, which takes a fraction of the time of at::gelu on many
  // elements.
  const bool pays = out.numel() >= kFewestElements && fits_kernels(out);
  if (!pays || !is_plain(out) || !out.is_contiguous()) return at::gelu(out);
  BlockedActivationDropout(activation, /*p=*/0.0).forward(out, /*first=*/0, out);
  return out;
}

}  // namespace flash::models
