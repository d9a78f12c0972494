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
    const Tensor right = transposed(weight, rows), out = at::empty_like(skip);
    for_parallel_blocks(rows, [&](const RowBlock& block) {
      matrix_product(block.of(x), right, gate.block(block));
      gated_norm_rows({.gate = gate.block(block),
                       .bias = bias,
                       .skip = block.of(skip),
                       .scale = norm_weight,
                       .shift = norm_bias,
                       .statistics = stats.block(block)},
                      block.of(out));
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
    const BlockMatrix to_gate(rows, 2 * width, x.options(), /*keep=*/false);
    const Tensor x_gradient = at::empty_like(x), skip_gradient = at::empty_like(skip);
    const TailGradients sums(rows, width, x.options());
    for_blocks(rows, [&](const RowBlock& block) {
      for_parts(block, [&](const RowBlock& part) {
        gated_norm_rows_backward({.gate = part.of(saved[6]),
                                  .bias = saved[3],
                                  .skip = part.of(skip),
                                  .scale = saved[4],
                                  .shift = saved[5],
                                  .statistics = part.of(saved[7])},
                                 part.of(gradient), to_gate.block(part), part.of(skip_gradient),
                                 Tensor(), sums.norm_sums, part.first);
        matrix_product(to_gate.block(part), weight, part.of(x_gradient));
      });
      matrix_product(to_gate.block(block).t(), block.of(x), sums.gate_weight, ProductResult::kAdd);
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
    const DropoutFactors factors(rows, width, dropout, x.options());
    const Tensor first_right = transposed(first_weight, rows), right = transposed(weight, rows),
                 gate_right = transposed(gate_weight, rows), out = at::empty_like(x);
    for_parallel_blocks(rows, [&](const RowBlock& block) {
      const Tensor active = activated.block(block);
      matrix_product(block.of(x), first_right, active);
      activate_rows(chosen, active, shift, block.first,
                    keep_argument ? argument.block(block) : Tensor());
      forward_tail(active, hidden.block(block), gate.block(block), right, bias, gate_right,
                   factors.block(block));
      gated_norm_rows({.gate = gate.block(block),
                       .bias = gate_bias,
                       .skip = block.of(x),
                       .scale = norm_weight,
                       .shift = norm_bias,
                       .statistics = stats.block(block)},
                      block.of(out));
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
    const Tensor &x = saved[0], &first_weight = saved[1], &activated = saved[9],
                 &hidden = saved[10];
    const auto activation = static_cast<GatedActivation>(context->saved_data["activation"].toInt());
    const double dropout = context->saved_data["dropout"].toDouble();
    const Tensor gradient = gradients[0].contiguous();
    const int64_t rows = x.size(0), width = x.size(1);
    const BlockMatrix to_gate(rows, 2 * width, x.options(), false),
        to_hidden(rows, width, x.options(), false), to_activated(rows, width, x.options(), false);
    const Tensor x_gradient = at::empty_like(x), first_gradient = at::zeros_like(first_weight);
    ShiftGradient to_shift(saved[2], rows);
    const TailGradients sums(rows, width, x.options());
    for_blocks(rows, [&](const RowBlock& block) {
      for_parts(block, [&](const RowBlock& part) {
        const Tensor to_x = part.of(x_gradient), to_active = to_activated.block(part);
        gated_norm_rows_backward({.gate = part.of(saved[11]),
                                  .bias = saved[6],
                                  .skip = part.of(x),
                                  .scale = saved[7],
                                  .shift = saved[8],
                                  .statistics = part.of(saved[12])},
                                 part.of(gradient), to_gate.block(part), to_x, Tensor(),
                                 sums.norm_sums, part.first);
        backward_tail(to_gate.block(part), part.of(hidden), saved[3], saved[5], dropout,
                      to_hidden.block(part), to_active, sums, part.first);
        activate_rows_backward(activation, to_active, part.of(saved[13]), to_shift.pieces(),
                               part.first);
        matrix_product(to_active, first_weight, to_x, ProductResult::kAdd);
      });
      const Tensor to_active = to_activated.block(block);
      add_weight_gradients(to_gate.block(block), block.of(hidden), to_hidden.block(block),
                           block.of(activated), sums);
      matrix_product(to_active.t(), block.of(x), first_gradient, ProductResult::kAdd);
      to_shift.add(to_active, block.first);
    });
    return {x_gradient,       first_gradient,   to_shift.sum(),   sums.weight,
            sums.bias(),      sums.gate_weight, sums.gate_bias(), sums.norm_weight(),
            sums.norm_bias(), Tensor(),         Tensor(),         Tensor()};
  }
};

}  // namespace

Tensor gated_norm(const Tensor& x, const Tensor& skip, const GateWeights& gate) {
  const bool keep =
      needs_backward({x, skip, gate.weight, gate.bias, gate.norm_weight, gate.norm_bias});
  return GatedNormFunction::apply(x.contiguous(), skip.contiguous(), gate.weight.contiguous(),
                                  gate.bias.contiguous(), gate.norm_weight.contiguous(),
                                  gate.norm_bias.contiguous(), keep);
}

Tensor gated_residual(const Tensor& x, const Tensor& first, const Tensor& shift,
                      const ResidualWeights& weights, GatedActivation activation, double dropout) {
  const GateWeights& gate = weights.gate;
  const bool keep = needs_backward({x, first, shift, weights.weight, weights.bias, gate.weight,
                                    gate.bias, gate.norm_weight, gate.norm_bias});
  return GatedResidualFunction::apply(x.contiguous(), first.contiguous(), shift.contiguous(),
                                      weights.weight.contiguous(), weights.bias.contiguous(),
                                      gate.weight.contiguous(), gate.bias.contiguous(),
                                      gate.norm_weight.contiguous(), gate.norm_bias.contiguous(),
                                      static_cast<int64_t>(activation), dropout, keep);
}

}  // namespace flash::models
