#include "layers/prob_attention.h"

#include <ATen/ATen.h>
#include <flash_attention/ops.h>
#include <flash_attention/sparsity.h>

#include <algorithm>
#include <cmath>

namespace flash::models {

int64_t ProbAttention::count(int64_t length) const {
  const auto log = static_cast<int64_t>(std::ceil(std::log(static_cast<double>(length))));
  return std::min(factor_ * log, length);
}

at::Tensor ProbAttention::select(const at::Tensor& query, const at::Tensor& key) const {
  const at::NoGradGuard no_grad;  // a selection has no derivative
  const at::Tensor sampled =
      at::randint(key.size(2), {query.size(2), count(key.size(2))}, at::TensorOptions(at::kLong));
  return std::get<1>(sparsity_measurement(query.detach(), key.detach(), sampled)
                         .topk(count(query.size(2)), -1, /*largest=*/true, /*sorted=*/false));
}

at::Tensor ProbAttention::attend_at(const at::Tensor& positions, const at::Tensor& query,
                                    const at::Tensor& key, const at::Tensor& value) const {
  auto options = AttentionOptions().block_size(config_.flash_block_size);
  if (causal_) options.causal(true).query_positions(positions);
  return config_.use_flash_attention ? attention(query, key, value, options)
                                     : standard_attention(query, key, value, options);
}

at::Tensor ProbAttention::attend(const at::Tensor& query, const at::Tensor& key,
                                 const at::Tensor& value, bool) const {
  TORCH_CHECK_VALUE(!causal_ || query.size(2) == key.size(2),
                    "ProbAttention: expected as many queries as keys under a causal mask, got ",
                    query.size(2), " and ", key.size(2));
  const at::Tensor positions = select(query, key);
  const at::Tensor row =
      positions.unsqueeze(-1).expand({-1, -1, -1, query.size(3)});  // each element of a row
  const at::Tensor selected = attend_at(positions, query.gather(2, row), key, value);
  const at::Tensor others =
      causal_ ? value.cumsum(2)
              : value.mean(2, /*keepdim=*/true).expand({-1, -1, query.size(2), -1});
  return others.contiguous().scatter(2, row, selected).view(
      {query.size(0), query.size(2), query.size(1) * query.size(3)});
}

}  // namespace flash::models
