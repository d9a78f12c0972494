#include "layers/patchtst/rev_in.h"

#include <torch/torch.h>

namespace flash::models {

RevINImpl::RevINImpl(bool affine, bool subtract_last)
    : affine_(affine), subtract_last_(subtract_last) {
  reset();
}

void RevINImpl::reset() {
  if (!affine_) return;
  affine_weight_ = register_parameter("affine_weight", torch::ones({1}));
  affine_bias_ = register_parameter("affine_bias", torch::zeros({1}));
}

std::pair<torch::Tensor, WindowStatistics> RevINImpl::normalize(
    const torch::Tensor& windows) const {
  WindowStatistics statistics;
  statistics.shift =
      subtract_last_ ? windows.slice(1, -1) : windows.mean(1, /*keepdim=*/true).detach();
  statistics.deviation =
      (windows.var(1, /*unbiased=*/false, /*keepdim=*/true) + kEpsilon).sqrt().detach();
  torch::Tensor normalized = (windows - statistics.shift) / statistics.deviation;
  if (affine_) normalized = normalized * affine_weight_ + affine_bias_;
  return {normalized, statistics};
}

torch::Tensor RevINImpl::denormalize(torch::Tensor outputs,
                                     const WindowStatistics& statistics) const {
  // The small addend avoids a division by a weight that training has driven to zero.
  if (affine_) outputs = (outputs - affine_bias_) / (affine_weight_ + kEpsilon * kEpsilon);
  return outputs * statistics.deviation + statistics.shift;
}

}  // namespace flash::models
