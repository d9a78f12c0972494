#include "layers/common/blocked_feed_forward.h"

#include <torch/torch.h>

#include <optional>

#include "layers/common/linear_blocks.h"
#include "layers/common/residual_tail.h"
#include "layers/common/row_blocks.h"

namespace flash::models {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

class FeedForwardFunction : public torch::autograd::Function<FeedForwardFunction> {
 public:
  static Tensor forward(AutogradContext* context, const Tensor& x, const Tensor& first_weight,
                        const std::optional<Tensor>& first_bias, const Tensor& second_weight,
                        const std::optional<Tensor>& second_bias, Activation activation,
                        double dropout, bool keep) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    const LinearWeights first = {first_weight, first_bias.value_or(Tensor())},
                        second = {second_weight, second_bias.value_or(Tensor())};
    const BlockedActivationDropout active(activation, dropout);
    const int64_t rows = x.size(0), wide = first.weight.size(0);
    const BlockMatrix inner(rows, wide, x.options(), keep), scratch(rows, wide, x.options(), false);
    Tensor out = at::empty({rows, second.weight.size(0)}, x.options());
    for_parallel_blocks(rows, [&](const RowBlock& block) {
      const Tensor wide_rows = inner.block(block), activated = scratch.block(block);
      linear_into(block.of(x), first, wide_rows);
      active.forward(wide_rows, block.first * wide, activated);
      linear_into(activated, second, block.of(out));
    });
    if (keep) {
      context->saved_data["call"] =
          std::tuple(static_cast<int64_t>(activation), dropout, active.seed());
      context->save_for_backward(
          {x, first.weight, first.bias, second.weight, second.bias, inner.kept()});
    }
    return out;
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    refuse_second_derivative("feed_forward");
    const at::AutoDispatchBelowADInplaceOrView guard;
    const variable_list saved = context->get_saved_variables();
    const auto [activation, dropout, seed] =
        context->saved_data["call"].to<std::tuple<int64_t, double, int64_t>>();
    const BlockedActivationDropout active(static_cast<Activation>(activation), dropout, seed);
    const Tensor &x = saved[0], &inner = saved[5];
    const LinearWeights first = {saved[1], saved[2]}, second = {saved[3], saved[4]};
    LinearGradients of_first(first), of_second(second);
    const int64_t rows = x.size(0), wide = first.weight.size(0);
    const BlockMatrix scratch(rows, wide, x.options(), false),
        activated_scratch(rows, wide, x.options(), false);
    const Tensor gradient = gradients[0].contiguous(), of_x = at::empty_like(x);
    for_blocks(rows, [&](const RowBlock& block) {
      for_parts(block, [&](const RowBlock& part) {
        const Tensor to_inner = scratch.block(part);
        matrix_product(part.of(gradient), second.weight, to_inner);
        active.backward(part.of(inner), part.first * wide, to_inner, activated_scratch.block(part));
        matrix_product(to_inner, first.weight, part.of(of_x));
      });
      of_second.add(block.of(gradient), activated_scratch.block(block));
      of_first.add(scratch.block(block), block.of(x));
    });
    return {of_x,     of_first.weight(), of_first.bias(), of_second.weight(), of_second.bias(),
            Tensor(), Tensor(),          Tensor()};
  }
};

}  // namespace

Tensor blocked_feed_forward(const Tensor& x, const LinearWeights& first,
                            const LinearWeights& second, Activation activation, double dropout) {
  const bool keep = needs_backward({x, first.weight, first.bias, second.weight, second.bias});
  auto sizes = x.sizes().vec();
  sizes.back() = second.weight.size(0);
  const auto if_any = [](const Tensor& t) {
    return t.defined() ? std::optional<Tensor>(t) : std::nullopt;
  };
  return FeedForwardFunction::apply(x.reshape({-1, x.size(-1)}).contiguous(),
                                    first.weight.contiguous(), if_any(first.bias),
                                    second.weight.contiguous(), if_any(second.bias), activation,
                                    dropout, keep)
      .view(sizes);
}

}  // namespace flash::models
