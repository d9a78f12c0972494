// Dropout of any tensor, alone or fused with an addition or an activation: its kernels and its
// autograd functions.

#include <ATen/ATen.h>
#include <flash_attention/dropout.h>
#include <torch/csrc/autograd/custom_function.h>

#include "ops/dropout_mask.h"
#include "ops/kernel_selection.h"
#include "ops/schedule.h"

namespace flash {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// What autograd saves; the backward regenerates the mask from it.
struct Mask {
  double p;
  int64_t seed;

  void save(AutogradContext* ctx) const { ctx->saved_data["mask"] = std::tuple(p, seed); }
  static Mask load(AutogradContext* ctx) {
    const auto [p, seed] = ctx->saved_data["mask"].to<std::tuple<double, int64_t>>();
    return {p, seed};
  }
};

/// Every tensor is contiguous; `other` and `value` may be undefined.
void run(DropoutKind kind, const at::Tensor& input, const at::Tensor& other, Mask mask,
         const at::Tensor& out, const at::Tensor& value = {}, int64_t first = 0) {
  DropoutParams p = {};
  p.kind = kind;
  p.input = input.const_data_ptr();
  p.other = other.defined() ? other.const_data_ptr() : nullptr;
  p.out = out.mutable_data_ptr();
  p.value = value.defined() ? value.mutable_data_ptr() : nullptr;
  p.first = first;
  p.elements = input.numel();
  p.dropout = mask.p;
  p.seed = static_cast<uint64_t>(mask.seed);
  const TypedKernels& kernels = kernels_of("flash::dropout", input.scalar_type());
  run_units(kernels.dropout_plan(p),
            [&](int64_t begin, int64_t end) { kernels.dropout(p, begin, end); });
}

at::Tensor run(DropoutKind kind, const at::Tensor& input, const at::Tensor& other, Mask mask) {
  const at::Tensor out = at::empty(input.sizes(), input.options());
  run(kind, input.contiguous(), other.defined() ? other.contiguous() : other, mask, out);
  return out;
}

/// Linear in its input, with itself as its derivative.
class Dropout : public torch::autograd::Function<Dropout> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& input, Mask mask) {
    mask.save(ctx);
    return run(DropoutKind::kPlain, input, {}, mask);
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    return {apply(grads[0], Mask::load(ctx)), {}};
  }
};

class DropoutAdd : public torch::autograd::Function<DropoutAdd> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& input,
                            const at::Tensor& residual, Mask mask) {
    mask.save(ctx);
    return run(DropoutKind::kAdd, input, residual, mask);
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const bool needs_input = ctx->needs_input_grad(0);
    return {needs_input ? Dropout::apply(grads[0], Mask::load(ctx)) : at::Tensor(), grads[0], {}};
  }
};

/// The first derivative, whose own derivative is not implemented and throws.
class ActivationDropoutBackward : public torch::autograd::Function<ActivationDropoutBackward> {
 public:
  static at::Tensor forward(AutogradContext*, const at::Tensor& grad, const at::Tensor& input,
                            Activation activation, Mask mask) {
    const bool relu = activation == Activation::kRelu;
    return run(relu ? DropoutKind::kReluGradient : DropoutKind::kGeluGradient, input, grad, mask);
  }
  static variable_list backward(AutogradContext*, const variable_list&) {
    TORCH_CHECK_NOT_IMPLEMENTED(
        false,
        "flash::activation_dropout: expected a first derivative, got a request for a second one, "
        "which is not implemented; use flash::dropout of the activation, which has any number");
  }
};

class ActivationDropout : public torch::autograd::Function<ActivationDropout> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& input, Activation activation,
                            Mask mask) {
    const bool relu = activation == Activation::kRelu;
    mask.save(ctx);
    ctx->saved_data["relu"] = relu;
    ctx->save_for_backward({input});
    return run(relu ? DropoutKind::kRelu : DropoutKind::kGelu, input, {}, mask);
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const bool relu = ctx->saved_data["relu"].toBool();
    return {ActivationDropoutBackward::apply(grads[0], ctx->get_saved_variables()[0],
                                             relu ? Activation::kRelu : Activation::kGelu,
                                             Mask::load(ctx)),
            {},
            {}};
  }
};

void check_dropout_input(const char* op, const at::Tensor& input, double p) {
  TORCH_CHECK_VALUE(p >= 0.0 && p <= 1.0, op, ": expected p to be a probability in [0, 1], got ",
                    p);
  check_kernel_input(op, "input", input);
}

constexpr char kBlocked[] = "flash::BlockedDropout";
constexpr char kBlockedActivation[] = "flash::BlockedActivationDropout";

void check_block(const char* op, const at::Tensor& input, double p, int64_t first, const char* name,
                 const at::Tensor& other) {
  check_dropout_input(op, input, p);
  check_same_dtype(op, "input", input, name, other);
  TORCH_CHECK_VALUE(
      input.numel() == other.numel() && input.is_contiguous() && other.is_contiguous(), op,
      ": expected contiguous blocks of the same size, got input ", input.sizes(), " of strides ",
      input.strides(), " and ", name, " ", other.sizes(), " of strides ", other.strides());
  TORCH_CHECK_VALUE(first >= 0 && first % kDropoutBlock == 0, op,
                    ": expected first to be a multiple of ", kDropoutBlock, ", got ", first);
}

}  // namespace

at::Tensor dropout(const at::Tensor& input, double p, bool training) {
  check_dropout_input("flash::dropout", input, p);
  if (!training || p == 0) return input;
  return Dropout::apply(input, Mask{p, draw_seed()});
}

at::Tensor dropout_add(const at::Tensor& input, const at::Tensor& residual, double p,
                       bool training) {
  constexpr char kOp[] = "flash::dropout_add";
  check_dropout_input(kOp, input, p);
  check_same_dtype(kOp, "input", input, "residual", residual);
  TORCH_CHECK_VALUE(input.sizes() == residual.sizes(), kOp,
                    ": expected input and residual of the same shape, got ", input.sizes(), " and ",
                    residual.sizes(), "; use .expand() to share one");
  if (!training || p == 0) return at::add(residual, input);
  return DropoutAdd::apply(input, residual, Mask{p, draw_seed()});
}

at::Tensor activation_dropout(const at::Tensor& input, Activation activation, double p,
                              bool training) {
  check_dropout_input("flash::activation_dropout", input, p);
  if (!training || p == 0) {
    return activation == Activation::kRelu ? at::relu(input) : at::gelu(input);
  }
  return ActivationDropout::apply(input, activation, Mask{p, draw_seed()});
}

BlockedDropout::BlockedDropout(double p) : BlockedDropout(p, p > 0 ? draw_seed() : 0) {}

void BlockedDropout::apply(const at::Tensor& input, int64_t first, const at::Tensor& out) const {
  check_block(kBlocked, input, p_, first, "out", out);
  run(DropoutKind::kPlain, input, {}, Mask{p_, seed_}, out, {}, first);
}

BlockedActivationDropout::BlockedActivationDropout(Activation activation, double p)
    : BlockedActivationDropout(activation, p, p > 0 ? draw_seed() : 0) {}

BlockedActivationDropout::BlockedActivationDropout(Activation activation, double p, int64_t seed)
    : activation_(activation), p_(p), seed_(seed) {}

void BlockedActivationDropout::forward(const at::Tensor& input, int64_t first,
                                       const at::Tensor& out) const {
  check_block(kBlockedActivation, input, p_, first, "out", out);
  const bool relu = activation_ == Activation::kRelu;
  run(relu ? DropoutKind::kRelu : DropoutKind::kGelu, input, {}, Mask{p_, seed_}, out, {}, first);
}

void BlockedActivationDropout::backward(const at::Tensor& input, int64_t first,
                                        const at::Tensor& gradient, const at::Tensor& out) const {
  check_block(kBlockedActivation, input, p_, first, "gradient", gradient);
  check_block(kBlockedActivation, input, p_, first, "out", out);
  const bool relu = activation_ == Activation::kRelu;
  run(relu ? DropoutKind::kReluGradient : DropoutKind::kGeluGradient, input, gradient,
      Mask{p_, seed_}, gradient, out, first);
}

}  // namespace flash
