#include "layers/tft/gated_residual.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/torch.h>

#include "layers/common/residual_tail.h"
#include "layers/common/row_blocks.h"

namespace flash::models {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

class GatedNormFunction : public torch::autograd::Function<GatedNormFunction> {
 public:
  static Tensor forward(AutogradContext* context, const Tensor& x, const Tensor& skip,
                        const Tensor& weight, const Tensor& bias, const Tensor& norm_weight,
                        const Tensor& norm_bias, bool keep) {
    at::AutoDispatchBelowADInplaceOrView guard;
    const int64_t rows = skip.size(0), width = skip.size(1);
    const BlockMatrix gate(rows, 2 * width, x.options(), keep), stats(rows, 2, x.options(), keep);
    const Tensor right = transposed(weight);
    Tensor out = at::empty_like(skip);
    for_blocks(rows, [&](int64_t first, int64_t count) {
      const Tensor block = gate.block(first, count);
      matrix_product(x.narrow(0, first, count), right, block);
      Tensor result = out.narrow(0, first, count);
      gated_norm_rows({.gate = block,
                       .bias = bias,
                       .skip = skip.narrow(0, first, count),
                       .scale = norm_weight,
                       .shift = norm_bias,
                       .statistics = stats.block(first, count)},
                      result);
    });
    if (keep) {
      context->save_for_backward(
          {x, skip, weight, bias, norm_weight, norm_bias, gate.kept(), stats.kept()});
    }
    return out;
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    refuse_second_derivative("gated_norm");
    at::AutoDispatchBelowADInplaceOrView guard;
    const auto saved = context->get_saved_variables();
    const Tensor &x = saved[0], &skip = saved[1], &weight = saved[2];
    const Tensor gradient = gradients[0].contiguous();
    const int64_t rows = skip.size(0), width = skip.size(1);
    const BlockMatrix gate_gradient(rows, 2 * width, x.options(), /*keep=*/false);
    Tensor x_gradient = at::empty_like(x), skip_gradient = at::empty_like(skip), none;
    TailGradients sums(width, x.options());
    for_blocks(rows, [&](int64_t first, int64_t count) {
      Tensor gate = gate_gradient.block(first, count);
      Tensor to_skip = skip_gradient.narrow(0, first, count);
      gated_norm_rows_backward({.gate = saved[6].narrow(0, first, count),
                                .bias = saved[3],
                                .skip = skip.narrow(0, first, count),
                                .scale = saved[4],
                                .shift = saved[5],
                                .statistics = saved[7].narrow(0, first, count)},
                               gradient.narrow(0, first, count), gate, to_skip, none,
                               sums.norm_sums);
      matrix_product(gate.t(), x.narrow(0, first, count), sums.gate_weight, ProductResult::kAdd);
      matrix_product(gate, weight, x_gradient.narrow(0, first, count));
    });
    return {x_gradient,         skip_gradient,    sums.gate_weight, sums.gate_bias(),
            sums.norm_weight(), sums.norm_bias(), Tensor()};
  }
};

class GatedResidualFunction : public torch::autograd::Function<GatedResidualFunction> {
 public:
  static Tensor forward(AutogradContext* context, const Tensor& x, const Tensor& first_weight,
                        const Tensor& shift, const Tensor& weight, const Tensor& bias,
                        const Tensor& gate_weight, const Tensor& gate_bias,
                        const Tensor& norm_weight, const Tensor& norm_bias, int64_t activation,
                        double dropout, bool keep) {
    at::AutoDispatchBelowADInplaceOrView guard;
    const int64_t rows = x.size(0), width = x.size(1);
    const auto chosen = static_cast<GatedActivation>(activation);
    const bool keep_argument = keep && keeps_argument(chosen);
    const BlockMatrix activated(rows, width, x.options(), keep),
        argument(keep_argument ? rows : 0, width, x.options(), true),
        hidden(rows, width, x.options(), keep), gate(rows, 2 * width, x.options(), keep),
        stats(rows, 2, x.options(), keep);
    const Tensor ones =
        at::ones({std::min(rows, kRowsPerBlock * at::get_num_threads()), width}, x.options());
    const Tensor first_right = transposed(first_weight), right = transposed(weight),
                 gate_right = transposed(gate_weight);
    Tensor out = at::empty_like(x);
    for_blocks(rows, [&](int64_t first, int64_t count) {
      const Tensor input = x.narrow(0, first, count);
      Tensor block = activated.block(first, count), result = out.narrow(0, first, count);
      matrix_product(input, first_right, block);
      activate_rows(chosen, block, shift, first,
                    keep_argument ? argument.block(first, count) : Tensor());
      forward_tail(block, hidden.block(first, count), gate.block(first, count), right, bias,
                   gate_right, dropout_factors(ones, count, dropout));
      gated_norm_rows({.gate = gate.block(first, count),
                       .bias = gate_bias,
                       .skip = input,
                       .scale = norm_weight,
                       .shift = norm_bias,
                       .statistics = stats.block(first, count)},
                      result);
    });
    if (keep) {
      context->saved_data["activation"] = activation;
      context->saved_data["dropout"] = dropout;
      context->save_for_backward({x, first_weight, shift, weight, bias, gate_weight, gate_bias,
                                  norm_weight, norm_bias, activated.kept(), hidden.kept(),
                                  gate.kept(), stats.kept(),
                                  keep_argument ? argument.kept() : activated.kept()});
    }
    return out;
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    refuse_second_derivative("gated_residual");
    at::AutoDispatchBelowADInplaceOrView guard;
    const auto saved = context->get_saved_variables();
    const Tensor &x = saved[0], &first_weight = saved[1], &shift = saved[2];
    const auto activation = static_cast<GatedActivation>(context->saved_data["activation"].toInt());
    const double dropout = context->saved_data["dropout"].toDouble();
    const Tensor gradient = gradients[0].contiguous();
    const int64_t rows = x.size(0), width = x.size(1);
    const BlockMatrix gate_scratch(rows, 2 * width, x.options(), false),
        hidden_scratch(rows, width, x.options(), false),
        activated_scratch(rows, width, x.options(), false);
    Tensor x_gradient = at::empty_like(x), none;
    Tensor first_gradient = at::zeros_like(first_weight);
    Tensor shift_sums = row_sums({shift.size(0), width}, x.options());
    TailGradients sums(width, x.options());
    for_blocks(rows, [&](int64_t first, int64_t count) {
      const auto part = [&](int64_t i) { return saved[i].narrow(0, first, count); };
      Tensor to_gate = gate_scratch.block(first, count);
      Tensor to_activated = activated_scratch.block(first, count);
      Tensor to_x = x_gradient.narrow(0, first, count);
      gated_norm_rows_backward({.gate = part(11),
                                .bias = saved[6],
                                .skip = part(0),
                                .scale = saved[7],
                                .shift = saved[8],
                                .statistics = part(12)},
                               gradient.narrow(0, first, count), to_gate, to_x, none,
                               sums.norm_sums);
      backward_tail(to_gate, part(10), part(9), saved[3], saved[5], dropout,
                    hidden_scratch.block(first, count), to_activated, sums);
      activate_rows_backward(activation, to_activated, part(13), shift_sums, first);
      matrix_product(to_activated.t(), part(0), first_gradient, ProductResult::kAdd);
      matrix_product(to_activated, first_weight, to_x, ProductResult::kAdd);
    });
    return {x_gradient,       first_gradient,   shift_sums.sum(0), sums.weight,
            sums.bias(),      sums.gate_weight, sums.gate_bias(),  sums.norm_weight(),
            sums.norm_bias(), Tensor(),         Tensor(),          Tensor()};
  }
};

}  // namespace

Tensor gated_norm(const Tensor& x, const Tensor& skip, const GateWeights& gate) {
  const bool keep =
      needs_backward({x, skip, gate.weight, gate.bias, gate.norm_weight, gate.norm_bias});
  return GatedNormFunction::apply(x.contiguous(), skip.contiguous(), gate.weight.contiguous(),
                                  gate.bias, gate.norm_weight, gate.norm_bias, keep);
}

Tensor gated_residual(const Tensor& x, const Tensor& first, const Tensor& shift,
                      const ResidualWeights& weights, GatedActivation activation, double dropout) {
  const GateWeights& gate = weights.gate;
  const bool keep = needs_backward({x, first, shift, weights.weight, weights.bias, gate.weight,
                                    gate.bias, gate.norm_weight, gate.norm_bias});
  return GatedResidualFunction::apply(
      x.contiguous(), first.contiguous(), shift.contiguous(), weights.weight.contiguous(),
      weights.bias, gate.weight.contiguous(), gate.bias, gate.norm_weight, gate.norm_bias,
      static_cast<int64_t>(activation), dropout, keep);
}

}  // namespace flash::models
