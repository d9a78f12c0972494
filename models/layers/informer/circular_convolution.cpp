#include "layers/informer/circular_convolution.h"

#include <ATen/Parallel.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <flash_attention/matrix_product.h>
#include <torch/torch.h>

#include <algorithm>

#include "layers/common/linear.h"
#include "layers/common/row_blocks.h"

namespace flash::models {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr int64_t kWidth = 3;
constexpr int64_t kPadding = 2;

/// [T + 2, C] -> [T, 3 C], overlapping in memory: each step and its two successors, side by side.
Tensor side_by_side(const Tensor& x) {
  return x.as_strided({x.size(0) - kPadding, kWidth * x.size(1)}, {x.stride(0), 1});
}

/// Scratch memory for a sample and its padding.
class PaddedSample {
 public:
  PaddedSample(int64_t steps, const Tensor& like)
      : steps_(steps), rows_(at::empty({steps + 2 * kPadding, like.size(2)}, like.options())) {}

  /// x [T, C] -> [T + 2, 3 C], the rows of the convolution's matrix product.
  Tensor circular(const Tensor& x) const {
    rows_.narrow(0, 0, kPadding).copy_(x.narrow(0, steps_ - kPadding, kPadding));
    rows_.narrow(0, kPadding, steps_).copy_(x);
    rows_.narrow(0, kPadding + steps_, kPadding).copy_(x.narrow(0, 0, kPadding));
    return side_by_side(rows_);
  }
  /// The same with zeros as padding.
  Tensor zero_padded(const Tensor& x) const {
    rows_.narrow(0, 0, kPadding).zero_();
    rows_.narrow(0, kPadding, steps_).copy_(x);
    rows_.narrow(0, kPadding + steps_, kPadding).zero_();
    return side_by_side(rows_);
  }

 private:
  int64_t steps_;
  Tensor rows_;
};

/// Calls `call(first, count)` for parts of the samples on all threads, below autograd.
template <class Call>
void for_sample_ranges(int64_t samples, const Call& call) {
  at::parallel_for(0, samples, 1, [&](int64_t begin, int64_t end) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    call(begin, end);
  });
}

class CircularConvolution : public torch::autograd::Function<CircularConvolution> {
 public:
  static Tensor forward(AutogradContext* context, const Tensor& x, const Tensor& weight,
                        const Tensor& bias) {
    context->save_for_backward({x, weight});
    const Tensor matrix = weight.permute({2, 1, 0}).flatten(0, 1);  // [3 in, out]
    const Tensor out = at::empty({x.size(0), x.size(1) + kPadding, weight.size(0)}, x.options());
    for_sample_ranges(x.size(0), [&](int64_t begin, int64_t end) {
      const PaddedSample padded(x.size(1), x);
      for (int64_t i = begin; i < end; ++i) {
        matrix_product_with_bias(padded.circular(x[i]), matrix, bias, out[i]);
      }
    });
    return out;
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    refuse_second_derivative("Informer's distilling convolution");
    const variable_list saved = context->get_saved_variables();
    const Tensor &x = saved[0], &weight = saved[1], g = gradients[0].contiguous();
    const Tensor of_x = context->needs_input_grad(0) ? gradient_of_input(g, weight) : Tensor();
    const Tensor of_matrix = at::zeros({weight.size(0), kWidth * weight.size(1)}, x.options());
    const PaddedSample padded(x.size(1), x);
    // One sample after another, so that sums do not depend on the number of threads.
    for (int64_t i = 0; i < x.size(0); ++i) {
      matrix_product(g[i].t(), padded.circular(x[i]), of_matrix, ProductResult::kAdd);
    }
    return {of_x, of_matrix.view({weight.size(0), kWidth, weight.size(1)}).permute({0, 2, 1}),
            g.sum(at::IntArrayRef{0, 1})};
  }

 private:
  // Step s of the padded input is neighbour k of row s - k, so its gradient is a convolution with
  // reversed weights.
  static Tensor gradient_of_input(const Tensor& g, const Tensor& weight) {
    const Tensor reversed = weight.flip(2).permute({2, 0, 1}).flatten(0, 1);  // [3 out, in]
    const int64_t steps = g.size(1) - kPadding;
    const Tensor out = at::empty({g.size(0), steps, weight.size(1)}, g.options());
    for_sample_ranges(g.size(0), [&](int64_t begin, int64_t end) {
      const PaddedSample padded(g.size(1), g);
      const Tensor of_padded = at::empty({steps + 2 * kPadding, weight.size(1)}, g.options());
      for (int64_t i = begin; i < end; ++i) {
        const Tensor of_x = out[i];
        matrix_product(padded.zero_padded(g[i]), reversed, of_padded);
        of_x.copy_(of_padded.narrow(0, kPadding, steps));
        of_x.narrow(0, steps - kPadding, kPadding).add_(of_padded.narrow(0, 0, kPadding));
        of_x.narrow(0, 0, kPadding).add_(of_padded.narrow(0, steps + kPadding, kPadding));
      }
    });
    return out;
  }
};

/// The convolution in operations of ATen.
Tensor convolved_by_aten(const Tensor& x, const Tensor& weight, const Tensor& bias) {
  const Tensor padded =
      at::cat({x.narrow(1, x.size(1) - kPadding, kPadding), x, x.narrow(1, 0, kPadding)}, 1);
  return at::conv1d(padded.transpose(1, 2), weight, bias).transpose(1, 2);
}

}  // namespace

at::Tensor circular_convolution(const at::Tensor& x, const at::Tensor& weight,
                                const at::Tensor& bias) {
  const auto fits_x = [&](const Tensor& t) {
    return t.scalar_type() == x.scalar_type() && is_plain(t);
  };
  const bool fits =
      fits_kernels(x) && x.numel() > 0 && is_plain(x) && fits_x(weight) && fits_x(bias);
  if (!fits) return convolved_by_aten(x, weight, bias);
  return CircularConvolution::apply(x.contiguous(), weight, bias.contiguous());
}

}  // namespace flash::models
