#include "layers/informer/circular_convolution.h"

#include <flash_attention/matrix_product.h>
#include <torch/torch.h>

#include <algorithm>

#include "layers/common/linear.h"
#include "layers/common/row_blocks.h"

namespace flash::models {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr int64_t kWidth = 3;
constexpr int64_t kPadding = 2;

/// [B, T + 2, C] -> [B, T, 3 C]: each step and its two successors, side by side.
at::Tensor side_by_side(const at::Tensor& x) {
  const int64_t steps = x.size(1) - kPadding;
  return at::cat({x.narrow(1, 0, steps), x.narrow(1, 1, steps), x.narrow(1, 2, steps)}, 2);
}

/// [B, T, C] -> [B, T + 2, 3 C], the rows of the convolution's matrix product.
at::Tensor neighbours(const at::Tensor& x) {
  return side_by_side(
      at::cat({x.narrow(1, x.size(1) - kPadding, kPadding), x, x.narrow(1, 0, kPadding)}, 1));
}

/// Samples whose rows make a block of one thread.
int64_t samples_per_thread(int64_t steps) {
  return std::max<int64_t>(1, kRowsPerBlock / std::max<int64_t>(1, steps));
}

/// Calls `call(first, count)` for blocks of samples that fit the caches.
template <class Call>
void for_sample_blocks(int64_t samples, int64_t steps, const Call& call) {
  const int64_t step = samples_per_thread(steps) * at::get_num_threads();
  for (int64_t first = 0; first < samples; first += step) {
    call(first, std::min(step, samples - first));
  }
}

/// out += left right, with the same bits on any number of threads where our kernels support x.
void add_product(const at::Tensor& left, const at::Tensor& right, const at::Tensor& out) {
  if (fits_kernels(right)) {
    matrix_product(left, right, out, ProductResult::kAdd);
  } else {
    out.addmm_(left, right);
  }
}

class CircularConvolution : public torch::autograd::Function<CircularConvolution> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& weight,
                            const at::Tensor& bias) {
    context->save_for_backward({x, weight});
    const at::Tensor matrix = weight.permute({0, 2, 1}).flatten(1);  // [out, 3 in]
    const at::Tensor out =
        at::empty({x.size(0), x.size(1) + kPadding, weight.size(0)}, x.options());
    for_sample_blocks(x.size(0), x.size(1), [&](int64_t first, int64_t count) {
      out.narrow(0, first, count)
          .copy_(product(neighbours(x.narrow(0, first, count)), matrix, bias));
    });
    return out;
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    refuse_second_derivative("Informer's distilling convolution");
    const variable_list saved = context->get_saved_variables();
    const at::Tensor &x = saved[0], &weight = saved[1], &g = gradients[0];
    // Step s of the padded input is neighbour k of row s - k, so its gradient is a convolution with
    // reversed weights.
    const at::Tensor reversed = weight.flip(2).permute({1, 2, 0}).flatten(1);  // [in, 3 out]
    const bool of_input = context->needs_input_grad(0);
    const at::Tensor of_x = of_input ? at::empty_like(x) : at::Tensor();
    const at::Tensor of_matrix = at::zeros({weight.size(0), kWidth * weight.size(1)}, x.options());
    const int64_t steps = x.size(1), per_thread = samples_per_thread(steps);
    for_sample_blocks(x.size(0), steps, [&](int64_t first, int64_t count) {
      const at::Tensor block = g.narrow(0, first, count);
      // The samples of one thread at a time, so that sums do not depend on the number of threads.
      for (int64_t i = 0; i < count; i += per_thread) {
        const int64_t samples = std::min(per_thread, count - i);
        add_product(block.narrow(0, i, samples).reshape({-1, block.size(2)}).t(),
                    neighbours(x.narrow(0, first + i, samples)).flatten(0, 1), of_matrix);
      }
      if (!of_input) return;
      const at::Tensor padded =
          product(side_by_side(at::constant_pad_nd(block, {0, 0, kPadding, kPadding})), reversed);
      const at::Tensor target = of_x.narrow(0, first, count);
      target.copy_(padded.narrow(1, kPadding, steps));
      target.narrow(1, steps - kPadding, kPadding).add_(padded.narrow(1, 0, kPadding));
      target.narrow(1, 0, kPadding).add_(padded.narrow(1, steps + kPadding, kPadding));
    });
    return {of_x, of_matrix.view({weight.size(0), kWidth, weight.size(1)}).permute({0, 2, 1}),
            g.sum(at::IntArrayRef{0, 1})};
  }
};

}  // namespace

at::Tensor circular_convolution(const at::Tensor& x, const at::Tensor& weight,
                                const at::Tensor& bias) {
  return CircularConvolution::apply(x.contiguous(), weight, bias);
}

}  // namespace flash::models
