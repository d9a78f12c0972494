#include "layers/tft/interpretable_attention.h"

#include <flash_attention/dropout.h>
#include <flash_attention/ops.h>
#include <torch/torch.h>

#include "layers/common/linear.h"

namespace flash::models {

InterpretableAttentionImpl::InterpretableAttentionImpl(InterpretableAttentionOptions options)
    : options_(options), head_dim_(options.hidden_size / options.heads) {
  reset();
}

void InterpretableAttentionImpl::reset() {
  const int64_t hidden = options_.hidden_size;
  const auto linear = [](int64_t in, int64_t out) {
    return torch::nn::Linear(torch::nn::LinearOptions(in, out).bias(false));
  };
  // Rows of the weight: queries of all heads, keys of all heads, and one set of values.
  projections_ =
      register_module("qkv_linears", linear(hidden, (2 * options_.heads + 1) * head_dim_));
  output_ = register_module("out_proj", linear(head_dim_, hidden));
}

torch::Tensor InterpretableAttentionImpl::forward(const torch::Tensor& x,
                                                  const torch::Tensor& last) {
  const int64_t width = options_.heads * head_dim_;
  const auto split_heads = [this](const torch::Tensor& t) {  // [T, B, n d] -> [B, n, T, d]
    return t.unflatten(-1, {-1, head_dim_}).permute({1, 2, 0, 3});
  };
  const auto parts = projections_->weight.split_with_sizes({width, width + head_dim_});
  const torch::Tensor query = split_heads(models::linear(last, parts[0]));
  // Split before the heads, so that the gradient is laid out once, as its products read it.
  const auto key_and_value = models::linear(x, parts[1]).split_with_sizes({width, head_dim_}, -1);
  const torch::Tensor key = split_heads(key_and_value[0]), value = split_heads(key_and_value[1]);

  const auto options = AttentionOptions()
                           .causal(true)
                           .dropout(is_training() ? options_.attention_dropout : 0.0)
                           .block_size(options_.config.flash_block_size);
  const torch::Tensor heads = options_.config.use_flash_attention
                                  ? attention(query, key, value, options)
                                  : standard_attention(query, key, value, options);
  return flash::dropout(models::linear(heads.mean(1).transpose(0, 1), output_->weight),
                        options_.output_dropout, is_training());
}

}  // namespace flash::models
