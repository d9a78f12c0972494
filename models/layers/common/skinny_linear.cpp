#include "layers/common/skinny_linear.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <flash_attention/layer_kernels.h>
#include <torch/torch.h>

#include <algorithm>

#include "layers/common/row_blocks.h"

namespace flash::models {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// skinny [R, k] times wide [k, D] -> [R, D]
at::Tensor widened(const at::Tensor& skinny, const at::Tensor& wide) {
  const at::Tensor x = skinny.contiguous(), factor = wide.contiguous();
  const int64_t rows = x.size(0), k = x.size(1), columns = wide.size(1);
  at::Tensor out = at::empty({rows, columns}, x.options());
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "skinny_linear", [&] {
    const auto* const left = x.const_data_ptr<scalar_t>();
    const auto* const right = factor.const_data_ptr<scalar_t>();
    auto* const result = out.mutable_data_ptr<scalar_t>();
    at::parallel_for(0, rows, kRowsPerBlock, [&](int64_t begin, int64_t end) {
      kernels::block_product({end - begin, columns, k},
                             kernels::LeftFactor<scalar_t>{left + begin * k, k, 1},
                             {right, columns}, {result + begin * columns, columns});
    });
  });
  return out;
}

/// skinny^T wide: skinny [R, k], wide [R, D] -> [k, D]. Each block of rows has a sum of its own, so
/// that the result does not depend on the number of threads.
at::Tensor summed(const at::Tensor& skinny, const at::Tensor& wide) {
  const at::Tensor x = skinny.contiguous(), factor = wide.contiguous();
  const int64_t rows = x.size(0), k = x.size(1), columns = wide.size(1);
  const int64_t blocks = (rows + kRowsPerBlock - 1) / kRowsPerBlock;
  at::Tensor sums = at::empty({blocks, k, columns}, x.options());
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "skinny_linear_backward", [&] {
    const auto* const left = x.const_data_ptr<scalar_t>();
    const auto* const right = factor.const_data_ptr<scalar_t>();
    auto* const result = sums.mutable_data_ptr<scalar_t>();
    at::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t first = i * kRowsPerBlock;
        kernels::block_product({k, columns, std::min(kRowsPerBlock, rows - first)},
                               kernels::LeftFactor<scalar_t>{left + first * k, 1, k},
                               {right + first * columns, columns},
                               {result + i * k * columns, columns});
      }
    });
  });
  return sums.sum(0);
}

class SkinnyLinear : public torch::autograd::Function<SkinnyLinear> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x,
                            const at::Tensor& weight) {
    context->save_for_backward({x, weight});
    if (weight.size(1) > weight.size(0)) return at::linear(x, weight);
    std::vector<int64_t> sizes = x.sizes().vec();
    sizes.back() = weight.size(0);
    return widened(x.reshape({-1, x.size(-1)}), weight.t()).view(sizes);
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    refuse_second_derivative("skinny_linear");
    const variable_list saved = context->get_saved_variables();
    const at::Tensor &x = saved[0], &weight = saved[1];
    const at::Tensor rows = x.reshape({-1, x.size(-1)});
    const at::Tensor g = gradients[0].reshape({-1, weight.size(0)});
    const bool widens = weight.size(0) >= weight.size(1);
    variable_list result(2);
    if (context->needs_input_grad(0)) {
      result[0] = (widens ? g.mm(weight) : widened(g, weight)).view_as(x);
    }
    if (context->needs_input_grad(1)) result[1] = widens ? summed(rows, g).t() : summed(g, rows);
    return result;
  }
};

}  // namespace

at::Tensor skinny_linear(const at::Tensor& x, const at::Tensor& weight) {
  return SkinnyLinear::apply(x, weight);
}

}  // namespace flash::models
