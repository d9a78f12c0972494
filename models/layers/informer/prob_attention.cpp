#include "layers/informer/prob_attention.h"

#include <ATen/ATen.h>
#include <flash_attention/ops.h>
#include <flash_attention/sparsity.h>

#include <algorithm>
#include <cmath>

#include "layers/informer/mixed_context.h"
#include "layers/informer/sampled_by.h"
#include "layers/informer/selected_queries.h"

namespace flash::models {

int64_t ProbAttention::count(int64_t length) const {
  const auto log = static_cast<int64_t>(std::ceil(std::log(static_cast<double>(length))));
  return std::min(factor_ * log, length);
}

at::Tensor ProbAttention::attend_at(const at::Tensor& positions, const at::Tensor& query,
                                    const at::Tensor& key, const at::Tensor& value) const {
  auto options = AttentionOptions().block_size(config_.flash_block_size).causal(causal_);
  if (causal_ && positions.defined()) options.query_positions(positions);
  return config_.use_flash_attention ? attention(query, key, value, options)
                                     : standard_attention(query, key, value, options);
}

at::Tensor ProbAttention::forward(const AttentionProjections& projections, const at::Tensor& x,
                                  const at::Tensor& memory, bool) const {
  const int64_t length = x.size(1), keys = memory.size(1), selected = count(length);
  TORCH_CHECK_VALUE(!causal_ || length == keys,
                    "ProbAttention: expected as many queries as keys under a causal mask, got ",
                    length, " and ", keys);
  // Drawn even if all queries are selected, so that a seed gives neuralforecast's samples.
  const at::Tensor sampled =
      at::randint(keys, {length, count(keys)}, sampling_generator(), at::TensorOptions(at::kLong));
  if (selected == length) {
    const at::Tensor attended = attend_at({}, projections.split_heads(projections.query(x)),
                                          projections.split_heads(projections.key(memory)),
                                          projections.split_heads(projections.value(memory)));
    return projections.out(attended.contiguous().view({x.size(0), length, -1}));
  }
  const SelectedQueries found = project_and_select(
      projections, x, memory, [&](const at::Tensor& query, const at::Tensor& key) {
        return std::get<1>(sparsity_measurement(query, key, sampled)
                               .topk(selected, -1, /*largest=*/true, /*sorted=*/false));
      });
  const at::Tensor attended = attend_at(found.positions, found.query, found.key, found.value);
  if (causal_) {
    return projections.out(mix_with_running_sum(attended, found.value, found.positions));
  }
  const at::Tensor mean = found.value.mean(2);
  return is_mostly_mean(projections, selected, length)
             ? project_mix_with_mean(projections, attended, mean, found.positions, length)
             : projections.out(mix_with_mean(attended, mean, found.positions, length));
}

}  // namespace flash::models
