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
    const int64_t most = std::min(rows, kRowsPerBlock * at::get_num_threads());
    const auto options = x.options();
    // Variables are stacked vertically, so that a block of a variable's rows is contiguous.
    const int64_t all = keep ? variables * rows : most;
    const BlockMatrix activated(most, width, options, false), skip(most, width, options, false),
        hidden(all, width, options, keep), gate(all, 2 * width, options, keep),
        stats(all, 2, options, keep);
    const Tensor ones = at::ones({most, width}, options), nothing = at::zeros({1, width}, options);
    const Tensor right = transposed(weight), gate_right = transposed(gate_weight);
    Tensor out = at::zeros({rows, width}, options);
    for_blocks(rows, [&](int64_t first, int64_t count) {
      Tensor result = out.narrow(0, first, count);
      Tensor skipped = skip.block(0, count), active = activated.block(0, count);
      for (int64_t j = 0; j < variables; ++j) {
        const Tensor column = x.narrow(0, first, count).select(1, j);
        const int64_t row = j * rows + first;
        outer_rows(active, column, in[kFirstFactor][j], in[kFirstShift][j]);
        activate_rows(static_cast<GatedActivation>(activation), active, nothing, 0);
        forward_tail(active, hidden.block(row, count), gate.block(row, count), right[j],
                     in[kBias][j], gate_right[j], dropout_factors(ones, count, dropout));
        outer_rows(skipped, column, in[kFactor][j], in[kShift][j]);
        gated_norm_rows({.gate = gate.block(row, count),
                         .bias = in[kGateBias][j],
                         .skip = skipped,
                         .scale = in[kNormWeight][j],
                         .shift = in[kNormBias][j],
                         .statistics = stats.block(row, count),
                         .row_factors = in[kSelection].narrow(0, first, count).select(1, j)},
                        result);
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
    const Tensor nothing = at::zeros({1, width}, options);
    Tensor x_gradient = at::zeros_like(x), selection_gradient = at::empty_like(saved[kSelection]);
    std::vector<TailGradients> tails;
    std::vector<Tensor> embedding_sums, first_sums, unused;
    for (int64_t j = 0; j < variables; ++j) {
      tails.emplace_back(width, options);
      embedding_sums.push_back(row_sums({2, width}, options));
      first_sums.push_back(row_sums({2, width}, options));
      unused.push_back(row_sums({1, width}, options));
    }
    for_blocks(rows, [&](int64_t first, int64_t count) {
      Tensor active = activated.block(0, count), skipped = skip.block(0, count);
      Tensor to_gate = to_gates.block(0, count), scratch = to_hidden.block(0, count);
      const Tensor argument = arguments.block(0, count);
      for (int64_t j = 0; j < variables; ++j) {
        const auto part = [&](int64_t i) { return saved[i].narrow(0, j * rows + first, count); };
        const auto column = [&](const Tensor& t) { return t.narrow(0, first, count).select(1, j); };
        Tensor to_x = column(x_gradient), to_selection = column(selection_gradient);
        outer_rows(skipped, column(x), saved[kFactor][j], saved[kShift][j]);
        // The skip connection's gradient replaces it row by row.
        gated_norm_rows_backward({.gate = part(kGate),
                                  .bias = saved[kGateBias][j],
                                  .skip = skipped,
                                  .scale = saved[kNormWeight][j],
                                  .shift = saved[kNormBias][j],
                                  .statistics = part(kStatistics),
                                  .row_factors = column(saved[kSelection])},
                                 gradient.narrow(0, first, count), to_gate, skipped, to_selection,
                                 tails[j].norm_sums);
        outer_rows_backward(skipped, column(x), saved[kFactor][j], to_x, embedding_sums[j]);
        outer_rows(active, column(x), saved[kFirstFactor][j], saved[kFirstShift][j]);
        activate_rows(activation, active, nothing, 0, argument);
        backward_tail(to_gate, part(kHidden), active, saved[kWeight][j], saved[kGateWeight][j],
                      dropout, scratch, skipped, tails[j]);
        activate_rows_backward(activation, skipped, keeps_argument(activation) ? argument : active,
                               unused[j], 0);
        outer_rows_backward(skipped, column(x), saved[kFirstFactor][j], to_x, first_sums[j]);
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
    const BlockMatrix hidden(x.size(0), shift.size(1), x.options(), false);
    const Tensor out = at::empty({x.size(0), second.size(0)}, x.options());
    const Tensor right = transposed(second);
    for_blocks(x.size(0), [&](int64_t first, int64_t count) {
      Tensor block = hidden.block(0, count);
      matrix_product(x.narrow(0, first, count), first_weight, block);
      activate_rows(static_cast<GatedActivation>(activation), block, shift, first);
      matrix_product(block, right, out.narrow(0, first, count));
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
        scratch(rows, width, x.options(), false), arguments(rows, width, x.options(), false);
    const Tensor first_right = transposed(first_weight);
    Tensor x_gradient = at::empty_like(x), first_gradient = at::zeros_like(first_weight),
           second_gradient = at::zeros_like(second),
           shift_sums = row_sums({shift.size(0), width}, x.options());
    for_blocks(rows, [&](int64_t first, int64_t count) {
      const Tensor input = x.narrow(0, first, count), to_out = gradient.narrow(0, first, count);
      Tensor block = hidden.block(0, count), to_block = scratch.block(0, count);
      const Tensor argument = arguments.block(0, count);
      matrix_product(input, first_weight, block);
      activate_rows(activation, block, shift, first, argument);
      matrix_product(to_out.t(), block, second_gradient, ProductResult::kAdd);
      matrix_product(to_out, second, to_block);
      activate_rows_backward(activation, to_block, keeps_argument(activation) ? argument : block,
                             shift_sums, first);
      matrix_product(input.t(), to_block, first_gradient, ProductResult::kAdd);
      matrix_product(to_block, first_right, x_gradient.narrow(0, first, count));
    });
    return {x_gradient, first_gradient, shift_sums.sum(0), second_gradient, Tensor()};
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
      embedding.first_shift.contiguous(), weights.weight.contiguous(), weights.bias,
      gate.weight.contiguous(), gate.bias, gate.norm_weight, gate.norm_bias,
      static_cast<int64_t>(activation), dropout, keep);
}

Tensor scalar_network(const Tensor& x, const Tensor& first, const Tensor& shift,
                      const Tensor& second, GatedActivation activation) {
  return ScalarNetwork::apply(x.contiguous(), first.contiguous(), shift.contiguous(),
                              second.contiguous(), static_cast<int64_t>(activation));
}

}  // namespace flash::models
