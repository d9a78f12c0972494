#include <ATen/ATen.h>
#include <flash_attention/ops.h>

#include "layers/common/attention_mechanism.h"

namespace flash::models {

at::Tensor FullAttention::forward(const AttentionProjections& projections, const at::Tensor& x,
                                  const at::Tensor& memory, bool training) const {
  const auto options =
      AttentionOptions().dropout(training ? dropout_ : 0.0).block_size(config_.flash_block_size);
  const at::Tensor query = projections.split_heads(projections.query(x));
  const at::Tensor key = projections.split_heads(projections.key(memory));
  const at::Tensor value = projections.split_heads(projections.value(memory));
  const at::Tensor attended = config_.use_flash_attention
                                  ? attention(query, key, value, options)
                                  : standard_attention(query, key, value, options);
  return projections.out(attended.transpose(1, 2).flatten(2));
}

}  // namespace flash::models
