#include <ATen/ATen.h>
#include <flash_attention/ops.h>

#include "layers/attention_mechanism.h"

namespace flash::models {

at::Tensor FullAttention::attend(const at::Tensor& query, const at::Tensor& key,
                                 const at::Tensor& value, bool training) const {
  const auto options = AttentionOptions()
                           .dropout(training ? dropout_ : 0.0)
                           .block_size(config_.flash_block_size);
  const at::Tensor attended = config_.use_flash_attention
                                  ? attention(query, key, value, options)
                                  : standard_attention(query, key, value, options);
  return attended.transpose(1, 2).flatten(2);
}

}  // namespace flash::models
