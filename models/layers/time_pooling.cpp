#include "layers/time_pooling.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <torch/torch.h>

#include "layers/function_clones.h"
#include "layers/row_blocks.h"

namespace flash::models {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// One window of rows: `before` and `after` may be missing. `which` is 0, 1 or 2 for the first of
/// the largest; a NaN counts as larger than anything, as in torch.
template <class T>
[[gnu::always_inline]] inline void pool_row(const T* before, const T* middle, const T* after,
                                            T* out, uint8_t* which, int64_t width) {
#pragma omp simd
  for (int64_t i = 0; i < width; ++i) {
    T largest = before != nullptr ? before[i] : middle[i];
    uint8_t index = before != nullptr ? 0 : 1;
    const T second = middle[i];
    if (second > largest || second != second) largest = second, index = 1;
    const T third = after != nullptr ? after[i] : largest;
    if (after != nullptr && (third > largest || third != third)) largest = third, index = 2;
    out[i] = largest;
    which[i] = index;
  }
}

template <class T>
[[gnu::always_inline]] inline void pool(const T* x, T* out, uint8_t* which, int64_t steps,
                                        int64_t width) {
  for (int64_t t = 0; 2 * t < steps; ++t) {
    const T* middle = x + 2 * t * width;
    pool_row(t > 0 ? middle - width : nullptr, middle, 2 * t + 1 < steps ? middle + width : nullptr,
             out + t * width, which + t * width, width);
  }
}

/// Every row of the input once: an even one is the middle of a window, an odd one the end of one
/// window and the start of the next, if there is one.
template <class T>
[[gnu::always_inline]] inline void pool_backward(const T* gradient, const uint8_t* which, T* of_x,
                                                 int64_t steps, int64_t width) {
  for (int64_t s = 0; s < steps; ++s) {
    const T* g = gradient + s / 2 * width;
    const uint8_t* w = which + s / 2 * width;
    T* to = of_x + s * width;
    if (s % 2 == 0) {
#pragma omp simd
      for (int64_t i = 0; i < width; ++i) to[i] = w[i] == 1 ? g[i] : T{0};
    } else if (s + 1 < steps) {
#pragma omp simd
      for (int64_t i = 0; i < width; ++i) {
        to[i] = (w[i] == 2 ? g[i] : T{0}) + (w[i + width] == 0 ? g[i + width] : T{0});
      }
    } else {
#pragma omp simd
      for (int64_t i = 0; i < width; ++i) to[i] = w[i] == 2 ? g[i] : T{0};
    }
  }
}

FLASH_FUNCTION_CLONES void pool_sample(const float* x, float* out, uint8_t* which, int64_t steps,
                                       int64_t width) {
  pool(x, out, which, steps, width);
}
FLASH_FUNCTION_CLONES void pool_sample(const double* x, double* out, uint8_t* which, int64_t steps,
                                       int64_t width) {
  pool(x, out, which, steps, width);
}
FLASH_FUNCTION_CLONES void pool_sample_backward(const float* gradient, const uint8_t* which,
                                                float* of_x, int64_t steps, int64_t width) {
  pool_backward(gradient, which, of_x, steps, width);
}
FLASH_FUNCTION_CLONES void pool_sample_backward(const double* gradient, const uint8_t* which,
                                                double* of_x, int64_t steps, int64_t width) {
  pool_backward(gradient, which, of_x, steps, width);
}

template <class Call>
void for_samples(int64_t samples, const Call& call) {
  at::parallel_for(0, samples, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) call(i);
  });
}

class HalveByMaximum : public torch::autograd::Function<HalveByMaximum> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x) {
    const int64_t steps = x.size(1), width = x.size(2), halved = (steps + 1) / 2;
    const at::Tensor out = at::empty({x.size(0), halved, width}, x.options());
    const at::Tensor which = at::empty(out.sizes(), x.options().dtype(at::kByte));
    AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "halve_by_maximum", [&] {
      for_samples(x.size(0), [&](int64_t b) {
        pool_sample(x.const_data_ptr<scalar_t>() + b * steps * width,
                    out.mutable_data_ptr<scalar_t>() + b * halved * width,
                    which.mutable_data_ptr<uint8_t>() + b * halved * width, steps, width);
      });
    });
    context->save_for_backward({which});
    context->saved_data["steps"] = steps;
    return out;
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    refuse_second_derivative("Informer's pooling");
    const at::Tensor which = context->get_saved_variables()[0];
    const at::Tensor g = gradients[0].contiguous();
    const int64_t steps = context->saved_data["steps"].toInt(), width = g.size(2);
    const at::Tensor of_x = at::empty({g.size(0), steps, width}, g.options());
    AT_DISPATCH_FLOATING_TYPES(g.scalar_type(), "halve_by_maximum_backward", [&] {
      for_samples(g.size(0), [&](int64_t b) {
        pool_sample_backward(g.const_data_ptr<scalar_t>() + b * g.size(1) * width,
                             which.const_data_ptr<uint8_t>() + b * g.size(1) * width,
                             of_x.mutable_data_ptr<scalar_t>() + b * steps * width, steps, width);
      });
    });
    return {of_x};
  }
};

}  // namespace

at::Tensor halve_by_maximum(const at::Tensor& x) { return HalveByMaximum::apply(x.contiguous()); }

}  // namespace flash::models
