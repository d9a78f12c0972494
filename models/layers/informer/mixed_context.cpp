#include "layers/informer/mixed_context.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <flash_attention/layer_kernels.h>
#include <torch/torch.h>

#include <algorithm>
#include <memory>

#include "layers/common/linear.h"
#include "layers/common/row_blocks.h"
#include "layers/informer/added_rows.h"

namespace flash::models {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

at::Tensor for_each_element(const at::Tensor& positions, int64_t d) {
  return positions.unsqueeze(-1).expand({-1, -1, -1, d});
}

/// [B, H, L, d] -> [B, L, H d] in the same memory order.
at::Tensor mixed(const at::Tensor& context) {
  return context.view({context.size(0), context.size(2), context.size(1) * context.size(3)});
}

class RunningSum : public torch::autograd::Function<RunningSum> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& attended,
                            const at::Tensor& value, const at::Tensor& positions) {
    context->save_for_backward({positions});
    const at::Tensor v = value.stride(3) == 1 ? value : value.contiguous();
    const at::Tensor out = at::empty(v.sizes(), v.options());
    const int64_t heads = v.size(1), length = v.size(2), d = v.size(3);
    AT_DISPATCH_FLOATING_TYPES(v.scalar_type(), "mix_with_running_sum", [&] {
      const auto* from = v.const_data_ptr<scalar_t>();
      auto* to = out.mutable_data_ptr<scalar_t>();
      at::parallel_for(0, v.size(0) * heads, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          kernels::running_sum(from + i / heads * v.stride(0) + i % heads * v.stride(1),
                               v.stride(2), to + i * length * d, length, d);
        }
      });
    });
    return mixed(out.scatter_(2, for_each_element(positions, d), attended));
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    refuse_second_derivative("ProbSparse attention");
    const at::Tensor positions = context->get_saved_variables()[0];
    const int64_t batch = positions.size(0), heads = positions.size(1), u = positions.size(2);
    const at::Tensor g = gradients[0].contiguous().view(
        {batch, heads, gradients[0].size(1), gradients[0].size(2) / heads});
    const int64_t length = g.size(2), d = g.size(3);
    // In the layout of the values: the heads of a step side by side.
    const at::Tensor of_value = at::empty({batch, length, heads, d}, g.options()).transpose(1, 2);
    const at::Tensor where = positions.contiguous();
    const auto* selected = where.const_data_ptr<int64_t>();
    AT_DISPATCH_FLOATING_TYPES(g.scalar_type(), "mix_with_running_sum_backward", [&] {
      const auto* from = g.const_data_ptr<scalar_t>();
      auto* to = of_value.mutable_data_ptr<scalar_t>();
      at::parallel_for(0, batch * heads, 1, [&](int64_t begin, int64_t end) {
        const auto skipped = std::make_unique<bool[]>(static_cast<size_t>(length));
        for (int64_t i = begin; i < end; ++i) {
          std::fill_n(skipped.get(), length, false);
          for (int64_t j = 0; j < u; ++j) skipped[selected[i * u + j]] = true;
          kernels::running_sum_backward(
              from + i * length * d, skipped.get(),
              to + i / heads * of_value.stride(0) + i % heads * of_value.stride(1),
              of_value.stride(2), length, d);
        }
      });
    });
    return {g.gather(2, for_each_element(positions, d)), of_value, {}};
  }
};

/// [L, H H + 1]: 1 in column H h + j if slot j of that output row holds the mean of head h, and 1
/// in the last column, for the bias.
at::Tensor means_of_rows(int64_t heads, int64_t length, const at::TensorOptions& options) {
  const at::Tensor block = at::arange(length * heads, at::TensorOptions(at::kLong));
  const at::Tensor column = block.div(length, "floor").mul_(heads).add_(block.remainder(heads));
  at::Tensor counts = at::zeros({length, heads * heads + 1}, options);
  counts.select(1, heads * heads).fill_(1);
  return counts.scatter_(1, column.view({length, heads}), 1);
}

/// counts [L, K] parts [B, K, D] -> [B, L, D]. Only the parts have a gradient.
class SumOfParts : public torch::autograd::Function<SumOfParts> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& counts,
                            const at::Tensor& parts) {
    context->save_for_backward({counts});
    return batched_product(counts.expand({parts.size(0), -1, -1}), parts);
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const at::Tensor& g = gradients[0];
    const at::Tensor counts = context->get_saved_variables()[0].t();
    return {at::Tensor(), batched_product(counts.expand({g.size(0), -1, -1}), g)};
  }
};

}  // namespace

at::Tensor mix_with_running_sum(const at::Tensor& attended, const at::Tensor& value,
                                const at::Tensor& positions) {
  return RunningSum::apply(attended, value, positions);
}

at::Tensor mix_with_mean(const at::Tensor& attended, const at::Tensor& mean,
                         const at::Tensor& positions, int64_t length) {
  const at::Tensor others = mean.unsqueeze(2).expand({-1, -1, length, -1});
  return mixed(others.clone(at::MemoryFormat::Contiguous)
                   .scatter_(2, for_each_element(positions, mean.size(2)), attended));
}

at::Tensor project_mix_with_mean(const AttentionProjections& projections,
                                 const at::Tensor& attended, const at::Tensor& mean,
                                 const at::Tensor& positions, int64_t length) {
  const int64_t batch = mean.size(0), heads = mean.size(1), d = mean.size(2);
  const at::Tensor &weight = projections.out_layer().weight, &bias = projections.out_layer().bias;
  const int64_t hidden = weight.size(0);

  // The contribution of each head's mean in each slot, and the sum of those in each row.
  const at::Tensor by_slot = weight.view({hidden, heads, d}).permute({1, 0, 2}).flatten(0, 1);
  const at::Tensor parts = models::linear(mean, by_slot).view({batch, heads * heads, hidden});
  const at::Tensor rows = SumOfParts::apply(means_of_rows(heads, length, mean.options()),
                                            at::cat({parts, bias.expand({batch, 1, hidden})}, 1));

  // A batch element consists of blocks of d elements. Block h L + i is slot (h L + i) % H of row
  // (h L + i) / H.
  const at::Tensor head = at::arange(heads, positions.options()).view({1, heads, 1});
  const at::Tensor block = positions + head * length;
  const at::Tensor first = at::arange(batch, positions.options()).view({batch, 1, 1}) * length;
  const at::Tensor row = (block.div(heads, "floor") + first).flatten();
  const at::Tensor slot = block.remainder(heads).view({-1, 1, 1}).expand({-1, 1, d});
  const at::Tensor differences = (attended - mean.unsqueeze(2)).reshape({-1, 1, d});
  const at::Tensor sparse = at::zeros({differences.size(0), heads, d}, mean.options())
                                .scatter(1, slot, differences)
                                .flatten(1);
  const at::Tensor added = models::linear(sparse, weight);
  if (!fits_kernels(rows)) return rows.flatten(0, 1).index_add_(0, row, added).view(rows.sizes());
  // Not as a view: nothing else reads the product that is changed in place.
  return with_added_rows(at::_unsafe_view(rows, {batch * length, hidden}), row, added)
      .view(rows.sizes());
}

bool is_mostly_mean(const AttentionProjections& projections, int64_t selected, int64_t length) {
  const int64_t heads = projections.heads(), inner = heads * projections.head_dim();
  return heads * selected * inner + length * heads * heads < length * inner;
}

}  // namespace flash::models
