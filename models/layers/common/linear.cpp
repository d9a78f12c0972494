#include "layers/common/linear.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <ATen/autocast_mode.h>
#include <flash_attention/layer_kernels.h>
#include <torch/torch.h>

#include <algorithm>
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
  return fits_kernels(x) && is_plain(x) && fits(weight, 2) && weight.size(0) > 0 && x.dim() >= 2 &&
         x.numel() > 0 && x.size(-1) == weight.size(1) &&
         (!bias.defined() || (fits(bias, 1) && bias.size(0) == weight.size(0)));
}

at::Tensor by_aten(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
  return bias.defined() ? at::linear(x, weight, bias) : at::linear(x, weight);
}

/// The most rows for linear_of_rows, with AVX-512 and without it, where there are fewer registers
/// for its blocks. With more rows, transposing the weight takes a small part of the time of a
/// product.
constexpr int64_t kMostRows = 48, kMostRowsOfNarrowVectors = 8;

/// Shorter sums take as long to add up across lanes as to compute.
constexpr int64_t kShortestRow = 64;

/// Multiplications of a task, some 10 µs.
constexpr int64_t kTask = int64_t{1} << 20;

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
    if (has_bias && context->needs_input_grad(2)) of_bias = sum_of_rows(rows);
    return {of_x, of_weight, of_bias};
  }
};

class WithBias : public torch::autograd::Function<WithBias> {
 public:
  static at::Tensor forward(AutogradContext*, const at::Tensor& x, const at::Tensor& bias) {
    return x + bias;
  }

  static variable_list backward(AutogradContext*, const variable_list& gradients) {
    const at::Tensor& g = gradients[0];
    return {g, sum_of_rows(g.flatten(0, -2))};
  }
};

}  // namespace

bool fits_kernels(const at::Tensor& x) {
  return x.is_cpu() && (x.scalar_type() == at::kFloat || x.scalar_type() == at::kDouble) &&
         !at::autocast::is_autocast_enabled(at::kCPU);
}

bool is_plain(const at::Tensor& x) {
  const c10::DispatchKeySet wrappers({c10::DispatchKey::Batched, c10::DispatchKey::FuncTorchBatched,
                                      c10::DispatchKey::FuncTorchGradWrapper});
  return !x.key_set().has_any(wrappers) && !x.is_neg() && !x._fw_grad(/*level=*/0).defined();
}

bool has_few_rows(int64_t rows, const at::Tensor& weight) {
  static const bool is_wide = at::get_cpu_capability().starts_with("AVX512");
  return weight.size(1) >= kShortestRow &&
         rows <= (is_wide ? kMostRows : kMostRowsOfNarrowVectors) && weight.stride(1) == 1 &&
         kernels::have_vectors() && !matrix_product_uses_tiles(weight.scalar_type());
}

at::Tensor linear_of_rows(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
  const at::AutoDispatchBelowADInplaceOrView guard;
  const at::Tensor rows = x.contiguous(), shift = bias.defined() ? bias.contiguous() : bias;
  auto sizes = x.sizes().vec();
  sizes.back() = weight.size(0);
  at::Tensor out = at::empty(sizes, x.options());
  const int64_t depth = weight.size(1), columns = weight.size(0), count = x.numel() / depth;
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "linear", [&] {
    const scalar_t* const w = weight.const_data_ptr<scalar_t>();
    const scalar_t* const b = shift.defined() ? shift.const_data_ptr<scalar_t>() : nullptr;
    for (int64_t row = 0; row < count; row += kMostRows) {
      const int64_t block = std::min(kMostRows, count - row);
      at::parallel_for(0, columns, std::max<int64_t>(1, kTask / (block * depth)),
                       [&](int64_t first, int64_t last) {
                         kernels::linear_rows<scalar_t>(
                             {.x = rows.const_data_ptr<scalar_t>() + row * depth,
                              .x_row = depth,
                              .weight = w + first * weight.stride(0),
                              .weight_row = weight.stride(0),
                              .bias = b == nullptr ? nullptr : b + first,
                              .out = out.mutable_data_ptr<scalar_t>() + row * columns + first,
                              .out_row = columns,
                              .rows = block,
                              .columns = last - first,
                              .depth = depth});
                       });
    }
  });
  return out;
}

at::Tensor product(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
  if (at::GradMode::is_enabled() || !fits_product(x, weight, bias)) return by_aten(x, weight, bias);
  if (has_few_rows(x.numel() / x.size(-1), weight)) return linear_of_rows(x, weight, bias);
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
  const bool fits = fits_kernels(x) && is_plain(x) && is_plain(g);
  if (at::GradMode::is_enabled() || !fits) return g.t().mm(x);
  const at::Tensor out = at::empty({g.size(1), x.size(1)}, x.options());
  matrix_product(g.t(), x.contiguous(), out);
  return out;
}

at::Tensor batched_product(const at::Tensor& left, const at::Tensor& right) {
  const bool fits = fits_kernels(left) && is_plain(left) && is_plain(right);
  if (at::GradMode::is_enabled() || !fits) return left.bmm(right);
  const bool is_readable = right.stride(1) == 1 || right.stride(2) == 1;
  const at::Tensor readable = is_readable ? right : right.contiguous();
  const at::Tensor out = at::empty({left.size(0), left.size(1), right.size(2)}, left.options());
  at::parallel_for(0, left.size(0), 1, [&](int64_t begin, int64_t end) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    for (int64_t i = begin; i < end; ++i) matrix_product(left[i], readable[i], out[i]);
  });
  return out;
}

at::Tensor sum_of_rows(const at::Tensor& rows) {
  if (rows.size(1) != 1 || rows.size(0) < 2 * kRowsPerPiece) return rows.sum(0);
  // torch shares the sum to a single number among its threads.
  const int64_t whole = rows.size(0) / kRowsPerPiece * kRowsPerPiece;
  const at::Tensor pieces = rows.narrow(0, 0, whole).reshape({-1, kRowsPerPiece}).sum(1);
  return sum_of_rows(pieces.unsqueeze(1)) + rows.slice(0, whole).sum(0);
}

at::Tensor with_bias(const at::Tensor& x, const at::Tensor& bias) {
  return WithBias::apply(x, bias);
}

at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
  if (!fits_product(x, weight, bias)) return by_aten(x, weight, bias);
  if (!at::GradMode::is_enabled()) return product(x, weight, bias);
  return Linear::apply(x, weight, bias.defined() ? std::make_optional(bias) : std::nullopt);
}

}  // namespace flash::models
