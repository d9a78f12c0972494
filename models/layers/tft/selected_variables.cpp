#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/torch.h>

#include "layers/common/residual_tail.h"
#include "layers/common/row_blocks.h"
#include "layers/tft/gated_residual.h"

namespace flash::models {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// The arguments of SelectedVariables::forward, by position; the results of the forward follow.
enum Saved {
  kX,
  kSelection,
  kFactor,
  kShift,
  kFirstFactor,
  kFirstShift,
  kWeight,
  kBias,
  kGateWeight,
  kGateBias,
  kNormWeight,
  kNormBias,
  kHidden,
  kGate,
  kStatistics
};

class SelectedVariables : public torch::autograd::Function<SelectedVariables> {
 public:
  // One argument each, because autograd does not look into lists.
  static Tensor forward(AutogradContext* context, const Tensor& x, const Tensor& selection,
                        const Tensor& factor, const Tensor& shift, const Tensor& first_factor,
                        const Tensor& first_shift, const Tensor& weight, const Tensor& bias,
                        const Tensor& gate_weight, const Tensor& gate_bias,
                        const Tensor& norm_weight, const Tensor& norm_bias, int64_t activation,
                        double dropout, bool keep) {
    at::AutoDispatchBelowADInplaceOrView guard;
    const variable_list in = {x,      selection, factor,      shift,     first_factor, first_shift,
                              weight, bias,      gate_weight, gate_bias, norm_weight,  norm_bias};
    const int64_t rows = x.size(0), variables = x.size(1), width = in[kFactor].size(1);
    const auto options = x.options();
    // Variables are stacked vertically, so that a block of a variable's rows is contiguous.
    const int64_t all = keep ? variables * rows : rows;
    const BlockMatrix activated(rows, width, options, false), skip(rows, width, options, false),
        hidden(all, width, options, keep), gate(all, 2 * width, options, keep),
        stats(all, 2, options, keep);
    std::vector<DropoutFactors> factors;
    for (int64_t j = 0; j < variables; ++j) factors.emplace_back(rows, width, dropout, options);
    const Tensor nothing = at::zeros({1, width}, options);
    const Tensor right = transposed(weight, rows), gate_right = transposed(gate_weight, rows);
    const Tensor out = at::zeros({rows, width}, options);
    for_parallel_blocks(rows, [&](const RowBlock& block) {
      const Tensor skipped = skip.block(block), active = activated.block(block);
      for (int64_t j = 0; j < variables; ++j) {
        const Tensor column = block.of(x).select(1, j);
        const RowBlock own = {j * rows + block.first, block.count, block.scratch};
        outer_rows(active, column, in[kFirstFactor][j], in[kFirstShift][j]);
        activate_rows(static_cast<GatedActivation>(activation), active, nothing, 0);
        forward_tail(active, hidden.block(own), gate.block(own), right[j], in[kBias][j],
                     gate_right[j], factors[static_cast<size_t>(j)].block(block));
        outer_rows(skipped, column, in[kFactor][j], in[kShift][j]);
        gated_norm_rows({.gate = gate.block(own),
                         .bias = in[kGateBias][j],
                         .skip = skipped,
                         .scale = in[kNormWeight][j],
                         .shift = in[kNormBias][j],
                         .statistics = stats.block(own),
                         .row_factors = block.of(in[kSelection]).select(1, j)},
                        block.of(out));
      }
    });
    if (keep) {
      variable_list saved = in;
      for (const BlockMatrix* kept : {&hidden, &gate, &stats}) saved.push_back(kept->kept());
      context->saved_data["activation"] = activation;
      context->saved_data["dropout"] = dropout;
      context->save_for_backward(saved);
    }
    return out;
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    refuse_second_derivative("selected_variables");
    at::AutoDispatchBelowADInplaceOrView guard;
    const auto saved = context->get_saved_variables();
    const auto activation = static_cast<GatedActivation>(context->saved_data["activation"].toInt());
    const double dropout = context->saved_data["dropout"].toDouble();
    const Tensor& x = saved[kX];
    const Tensor gradient = gradients[0].contiguous();
    const int64_t rows = x.size(0), variables = x.size(1), width = gradient.size(1);
    const auto options = x.options();
    const BlockMatrix activated(rows, width, options, false), skip(rows, width, options, false),
        to_gates(rows, 2 * width, options, false), to_hidden(rows, width, options, false),
        arguments(rows, width, options, false);
    const Tensor nothing = at::zeros({1, width}, options),
                 unused = row_sums(rows, {width}, options);
    const Tensor x_gradient = at::zeros_like(x),
                 selection_gradient = at::empty_like(saved[kSelection]);
    std::vector<TailGradients> tails;
    std::vector<Tensor> embedding_sums, first_sums;
    for (int64_t j = 0; j < variables; ++j) {
      tails.emplace_back(rows, width, options);
      embedding_sums.push_back(row_sums(rows, {2, width}, options));
      first_sums.push_back(row_sums(rows, {2, width}, options));
    }
    for_blocks(rows, [&](const RowBlock& block) {
      for (int64_t j = 0; j < variables; ++j) {
        const auto hidden_of = [&](const RowBlock& part, Saved matrix) {
          return saved[matrix].narrow(0, j * rows + part.first, part.count);
        };
        const auto at_j = [&](Saved parameter) { return saved[parameter][j]; };
        const TailGradients& tail = tails[static_cast<size_t>(j)];
        const Tensor &to_embedding = embedding_sums[static_cast<size_t>(j)],
                     &to_first = first_sums[static_cast<size_t>(j)];
        for_parts(block, [&](const RowBlock& part) {
          const auto column = [&](const Tensor& t) { return part.of(t).select(1, j); };
          const Tensor active = activated.block(part), skipped = skip.block(part),
                       argument = arguments.block(part), to_x = column(x_gradient);
          outer_rows(skipped, column(x), at_j(kFactor), at_j(kShift));
          // The skip connection's gradient replaces it row by row.
          gated_norm_rows_backward({.gate = hidden_of(part, kGate),
                                    .bias = at_j(kGateBias),
                                    .skip = skipped,
                                    .scale = at_j(kNormWeight),
                                    .shift = at_j(kNormBias),
                                    .statistics = hidden_of(part, kStatistics),
                                    .row_factors = column(saved[kSelection])},
                                   part.of(gradient), to_gates.block(part), skipped,
                                   column(selection_gradient), tail.norm_sums, part.first);
          outer_rows_backward(skipped, column(x), at_j(kFactor), to_x, to_embedding, part.first);
          outer_rows(active, column(x), at_j(kFirstFactor), at_j(kFirstShift));
          activate_rows(activation, active, nothing, 0, argument);
          backward_tail(to_gates.block(part), hidden_of(part, kHidden), at_j(kWeight),
                        at_j(kGateWeight), dropout, to_hidden.block(part), skipped, tail,
                        part.first);
          activate_rows_backward(activation, skipped,
                                 keeps_argument(activation) ? argument : active, unused,
                                 part.first);
          outer_rows_backward(skipped, column(x), at_j(kFirstFactor), to_x, to_first, part.first);
        });
        add_weight_gradients(to_gates.block(block), hidden_of(block, kHidden),
                             to_hidden.block(block), activated.block(block), tail);
      }
    });
    const auto stack = [&](const auto& one) {
      std::vector<Tensor> parts;
      for (int64_t j = 0; j < variables; ++j) parts.push_back(one(j));
      return at::stack(parts);
    };
    const Tensor embedding = stack([&](int64_t j) { return embedding_sums[j].sum(0); });
    const Tensor first = stack([&](int64_t j) { return first_sums[j].sum(0); });
    return {x_gradient,
            selection_gradient,
            embedding.select(1, 0),
            embedding.select(1, 1),
            first.select(1, 0),
            first.select(1, 1),
            stack([&](int64_t j) { return tails[j].weight; }),
            stack([&](int64_t j) { return tails[j].bias(); }),
            stack([&](int64_t j) { return tails[j].gate_weight; }),
            stack([&](int64_t j) { return tails[j].gate_bias(); }),
            stack([&](int64_t j) { return tails[j].norm_weight(); }),
            stack([&](int64_t j) { return tails[j].norm_bias(); }),
            Tensor(),
            Tensor(),
            Tensor()};
  }
};

class ScalarNetwork : public torch::autograd::Function<ScalarNetwork> {
 public:
  static Tensor forward(AutogradContext* context, const Tensor& x, const Tensor& first_weight,
                        const Tensor& shift, const Tensor& second, int64_t activation) {
    at::AutoDispatchBelowADInplaceOrView guard;
    context->saved_data["activation"] = activation;
    context->save_for_backward({x, first_weight, shift, second});
    const int64_t rows = x.size(0);
    const BlockMatrix hidden(rows, shift.size(1), x.options(), false);
    const Tensor out = at::empty({rows, second.size(0)}, x.options());
    const Tensor right = transposed(second, rows);
    for_parallel_blocks(rows, [&](const RowBlock& block) {
      const Tensor active = hidden.block(block);
      matrix_product(block.of(x), first_weight, active);
      activate_rows(static_cast<GatedActivation>(activation), active, shift, block.first);
      matrix_product(active, right, block.of(out));
    });
    return out;
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    refuse_second_derivative("scalar_network");
    at::AutoDispatchBelowADInplaceOrView guard;
    const auto saved = context->get_saved_variables();
    const Tensor &x = saved[0], &first_weight = saved[1], &shift = saved[2], &second = saved[3];
    const auto activation = static_cast<GatedActivation>(context->saved_data["activation"].toInt());
    const Tensor gradient = gradients[0].contiguous();
    const int64_t rows = x.size(0), width = shift.size(1);
    const BlockMatrix hidden(rows, width, x.options(), false),
        to_hidden(rows, width, x.options(), false), arguments(rows, width, x.options(), false);
    const Tensor first_right = transposed(first_weight, rows);
    const Tensor x_gradient = at::empty_like(x), first_gradient = at::zeros_like(first_weight),
                 second_gradient = at::zeros_like(second);
    ShiftGradient to_shift(shift, rows);
    for_blocks(rows, [&](const RowBlock& block) {
      for_parts(block, [&](const RowBlock& part) {
        const Tensor active = hidden.block(part), argument = arguments.block(part),
                     to_active = to_hidden.block(part);
        matrix_product(part.of(x), first_weight, active);
        activate_rows(activation, active, shift, part.first, argument);
        matrix_product(part.of(gradient), second, to_active);
        activate_rows_backward(activation, to_active,
                               keeps_argument(activation) ? argument : active, to_shift.pieces(),
                               part.first);
        matrix_product(to_active, first_right, part.of(x_gradient));
      });
      const Tensor to_active = to_hidden.block(block);
      matrix_product(block.of(gradient).t(), hidden.block(block), second_gradient,
                     ProductResult::kAdd);
      matrix_product(block.of(x).t(), to_active, first_gradient, ProductResult::kAdd);
      to_shift.add(to_active, block.first);
    });
    return {x_gradient, first_gradient, to_shift.sum(), second_gradient, Tensor()};
  }
};

}  // namespace

Tensor selected_variables(const Tensor& x, const Tensor& selection,
                          const ScalarEmbedding& embedding, const ResidualWeights& weights,
                          GatedActivation activation, double dropout) {
  const GateWeights& gate = weights.gate;
  const bool keep =
      needs_backward({x, selection, embedding.factor, embedding.shift, embedding.first_factor,
                      embedding.first_shift, weights.weight, weights.bias, gate.weight, gate.bias,
                      gate.norm_weight, gate.norm_bias});
  return SelectedVariables::apply(
      x.contiguous(), selection.contiguous(), embedding.factor.contiguous(),
      embedding.shift.contiguous(), embedding.first_factor.contiguous(),
      embedding.first_shift.contiguous(), weights.weight.contiguous(), weights.bias.contiguous(),
      gate.weight.contiguous(), gate.bias.contiguous(), gate.norm_weight.contiguous(),
      gate.norm_bias.contiguous(), static_cast<int64_t>(activation), dropout, keep);
}

Tensor scalar_network(const Tensor& x, const Tensor& first, const Tensor& shift,
                      const Tensor& second, GatedActivation activation) {
  return ScalarNetwork::apply(x.contiguous(), first.contiguous(), shift.contiguous(),
                              second.contiguous(), static_cast<int64_t>(activation));
}

}  // namespace flash::models
