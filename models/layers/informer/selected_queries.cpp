#include "layers/informer/selected_queries.h"

#include <flash_attention/matrix_product.h>
#include <torch/torch.h>

#include "layers/common/linear.h"
#include "layers/common/row_blocks.h"
#include "layers/informer/added_rows.h"

namespace flash::models {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

at::Tensor as_rows(const at::Tensor& x) { return x.reshape({-1, x.size(-1)}); }

/// [H, B u]: for each selected query of a head, its row in x as a matrix of B L rows.
at::Tensor rows_of_x(const at::Tensor& positions, int64_t length) {
  const at::Tensor first = at::arange(positions.size(0), positions.options()).mul_(length);
  return (positions + first.view({-1, 1, 1})).transpose(0, 1).flatten(1);
}

class ProjectAndSelect : public torch::autograd::Function<ProjectAndSelect> {
 public:
  static variable_list forward(AutogradContext* context, const at::Tensor& x,
                               const at::Tensor& memory, const at::Tensor& query_weight,
                               const at::Tensor& query_bias, const at::Tensor& key_weight,
                               const at::Tensor& key_bias, const at::Tensor& value_weight,
                               const at::Tensor& value_bias, int64_t heads, bool self,
                               const Selection& select) {
    const auto split_heads = [heads](const at::Tensor& t) {
      return t.unflatten(-1, {heads, -1}).transpose(1, 2);
    };
    const at::Tensor key = product(memory, key_weight, key_bias);
    const at::Tensor value = product(memory, value_weight, value_bias);
    const at::Tensor query = split_heads(product(x, query_weight, query_bias));
    const at::Tensor positions = select(query, split_heads(key));
    const at::Tensor selected =
        query.gather(2, positions.unsqueeze(-1).expand({-1, -1, -1, query.size(3)}));
    context->save_for_backward({x, memory, query_weight, key_weight, value_weight, positions});
    context->saved_data["self"] = self;
    context->mark_non_differentiable({positions});
    return {selected, key, value, positions};
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    refuse_second_derivative("ProbSparse attention");
    const variable_list saved = context->get_saved_variables();
    const at::Tensor &x = saved[0], &memory = saved[1], &positions = saved[5];
    const bool self = context->saved_data["self"].toBool();
    variable_list result(11);
    const at::Tensor of_key = as_rows(gradients[1]), of_value = as_rows(gradients[2]);
    result[4] = weight_gradient(of_key, as_rows(memory));
    result[5] = of_key.sum(0);
    result[6] = weight_gradient(of_value, as_rows(memory));
    result[7] = of_value.sum(0);
    if (context->needs_input_grad(self ? 0 : 1)) {
      const at::Tensor sum = product(of_key, saved[3].t());
      if (fits_kernels(sum)) {
        matrix_product(of_value, saved[4].contiguous(), sum, ProductResult::kAdd);
      } else {
        sum.addmm_(of_value, saved[4]);
      }
      result[self ? 0 : 1] = sum.view_as(memory);
    }

    // One head at a time, because each head selected other rows of x.
    const at::Tensor rows = rows_of_x(positions, x.size(1));                 // [H, B u]
    const at::Tensor of_query = gradients[0].transpose(0, 1).flatten(1, 2);  // [H, B u, d]
    const at::Tensor weight = saved[2].view({rows.size(0), -1, x.size(2)});  // [H, d, D]
    const at::Tensor selected = as_rows(x).index_select(0, rows.flatten());
    result[2] =
        batched_product(of_query.transpose(1, 2), selected.view({rows.size(0), rows.size(1), -1}))
            .view_as(saved[2]);
    result[3] = of_query.sum(1).flatten();
    if (context->needs_input_grad(0)) {
      if (!self) result[0] = at::zeros_like(x);
      const at::Tensor all = result[0].view({-1, x.size(2)});
      const at::Tensor of_selected = batched_product(of_query, weight).flatten(0, 1);
      if (fits_kernels(all)) {
        add_rows(all, rows.flatten(), of_selected);
      } else {
        all.index_add_(0, rows.flatten(), of_selected);
      }
    }
    return result;
  }
};

}  // namespace

SelectedQueries project_and_select(const AttentionProjections& projections, const at::Tensor& x,
                                   const at::Tensor& memory, const Selection& select) {
  const auto& query = projections.query_layer();
  const auto& key = projections.key_layer();
  const auto& value = projections.value_layer();
  const variable_list found = ProjectAndSelect::apply(
      x.contiguous(), memory.contiguous(), query.weight, query.bias, key.weight, key.bias,
      value.weight, value.bias, projections.heads(), x.is_same(memory), select);
  return {.query = found[0],
          .key = projections.split_heads(found[1]),
          .value = projections.split_heads(found[2]),
          .positions = found[3]};
}

}  // namespace flash::models
