#include "layers/common/batch_statistics.h"

#include <torch/torch.h>

namespace flash::models {
namespace {

thread_local ProcessSum* all_processes = nullptr;

/// Normalised rows, mean and unbiased variance, from the sums over all processes:
///
///   xhat = (x - mean) / sqrt(var + eps)
///   dx   = (dxhat - mean(dxhat) - xhat mean(dxhat xhat)) / sqrt(var + eps)
class NormalizedRows : public torch::autograd::Function<NormalizedRows> {
 public:
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* context,
                                                const at::Tensor& x, double eps) {
    ProcessSum& processes = *all_processes;
    // In double precision, so that a variance is not the difference of two large rounded numbers.
    const at::Tensor exact = x.to(at::kDouble);
    const at::Tensor rows = at::full({1}, static_cast<double>(x.size(0)), exact.options());
    const at::Tensor sums = processes.sum(at::cat({exact.sum(0), exact.square().sum(0), rows}));
    const int64_t features = x.size(1);
    const at::Tensor count = sums.narrow(0, 2 * features, 1);
    const at::Tensor mean = sums.narrow(0, 0, features) / count;
    const at::Tensor variance =
        (sums.narrow(0, features, features) / count - mean.square()).clamp_min(0);
    const at::Tensor scale = (variance + eps).rsqrt();
    const at::Tensor normalized = ((exact - mean) * scale).to(x.scalar_type());
    const at::Tensor unbiased = variance * count / (count - 1);
    context->save_for_backward({normalized, scale, count});
    context->saved_data["processes"] = reinterpret_cast<int64_t>(&processes);
    at::Tensor mean_out = mean.to(x.scalar_type()), variance_out = unbiased.to(x.scalar_type());
    context->mark_non_differentiable({mean_out, variance_out});
    return {normalized, mean_out, variance_out};
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list grads) {
    auto& processes = *reinterpret_cast<ProcessSum*>(context->saved_data["processes"].toInt());
    const auto saved = context->get_saved_variables();
    const at::Tensor &normalized = saved[0], &scale = saved[1], &count = saved[2];
    const at::Tensor grad = grads[0].to(at::kDouble);
    const int64_t features = grad.size(1);
    const at::Tensor sums =
        processes.sum(at::cat({grad.sum(0), (grad * normalized).sum(0)})) / count;
    const at::Tensor dx =
        (grad - sums.narrow(0, 0, features) - normalized * sums.narrow(0, features, features)) *
        scale;
    return {dx.to(grads[0].scalar_type()), at::Tensor()};
  }
};

}  // namespace

SharedStatistics::SharedStatistics(ProcessSum& processes) : before_(all_processes) {
  all_processes = &processes;
}

SharedStatistics::~SharedStatistics() { all_processes = before_; }

bool has_shared_statistics() { return all_processes != nullptr; }

at::Tensor shared_batch_norm(const at::Tensor& x, torch::nn::BatchNorm1dImpl& norm) {
  const auto outputs = NormalizedRows::apply(x, norm.options.eps());
  {
    const at::NoGradGuard no_grad;
    norm.num_batches_tracked.add_(1);
    const double momentum = norm.options.momentum().value();
    norm.running_mean.lerp_(outputs[1], momentum);
    norm.running_var.lerp_(outputs[2], momentum);
  }
  return outputs[0] * norm.weight + norm.bias;
}

at::Tensor mean_of_rows(const at::Tensor& x) {
  if (all_processes == nullptr) return x.mean(0, /*keepdim=*/true);
  const at::Tensor exact = x.detach().to(at::kDouble);
  const at::Tensor rows = at::full({1}, static_cast<double>(x.size(0)), exact.options());
  const at::Tensor sums = all_processes->sum(at::cat({exact.sum(0), rows}));
  const int64_t columns = x.size(1);
  return (sums.narrow(0, 0, columns) / sums.narrow(0, columns, 1))
      .to(x.scalar_type())
      .view({1, -1});
}

}  // namespace flash::models
