#include "layers/informer/time_pooling.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <flash_attention/layer_kernels.h>
#include <torch/torch.h>

#include "layers/common/row_blocks.h"

namespace flash::models {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

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
        kernels::halve_by_maximum(x.const_data_ptr<scalar_t>() + b * steps * width,
                                  out.mutable_data_ptr<scalar_t>() + b * halved * width,
                                  which.mutable_data_ptr<uint8_t>() + b * halved * width, steps,
                                  width);
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
        kernels::halve_by_maximum_backward(g.const_data_ptr<scalar_t>() + b * g.size(1) * width,
                                           which.const_data_ptr<uint8_t>() + b * g.size(1) * width,
                                           of_x.mutable_data_ptr<scalar_t>() + b * steps * width,
                                           steps, width);
      });
    });
    return {of_x};
  }
};

}  // namespace

at::Tensor halve_by_maximum(const at::Tensor& x) { return HalveByMaximum::apply(x.contiguous()); }

}  // namespace flash::models
