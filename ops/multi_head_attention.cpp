#include <c10/util/Exception.h>
#include <flash_attention/multi_head_attention.h>
#include <flash_attention/ops.h>

namespace flash {
namespace {

void check_input(const char* name, const torch::Tensor& x, int64_t d_model) {
  TORCH_CHECK_VALUE(x.dim() == 3 && x.size(2) == d_model, "flash::MultiHeadAttention: expected ",
                    name, " as [batch, length, ", d_model, "], got ", x.sizes());
}

// [B, L, d_model] -> [B, H, L, d_model / H], a view: the kernels read any strides.
torch::Tensor split_heads(const torch::Tensor& x, int64_t num_heads) {
  return x.unflatten(2, {num_heads, x.size(2) / num_heads}).transpose(1, 2);
}

}  // namespace

MultiHeadAttentionImpl::MultiHeadAttentionImpl(MultiHeadAttentionConfig config) : config(config) {
  reset();
}

void MultiHeadAttentionImpl::reset() {
  TORCH_CHECK_VALUE(
      config.num_heads > 0 && config.d_model > 0 && config.d_model % config.num_heads == 0,
      "flash::MultiHeadAttention: expected d_model as a positive multiple of num_heads, got "
      "d_model ",
      config.d_model, " and num_heads ", config.num_heads);
  const torch::nn::LinearOptions options(config.d_model, config.d_model);
  q_proj = register_module("q_proj", torch::nn::Linear(options));
  k_proj = register_module("k_proj", torch::nn::Linear(options));
  v_proj = register_module("v_proj", torch::nn::Linear(options));
  out_proj = register_module("out_proj", torch::nn::Linear(options));
}

torch::Tensor MultiHeadAttentionImpl::forward(const torch::Tensor& query, const torch::Tensor& key,
                                              const torch::Tensor& value) {
  check_input("query", query, config.d_model);
  check_input("key", key, config.d_model);
  check_input("value", value, config.d_model);
  const auto q = split_heads(q_proj(query), config.num_heads);
  const auto k = split_heads(k_proj(key), config.num_heads);
  const auto v = split_heads(v_proj(value), config.num_heads);
  const auto options = AttentionOptions()
                           .causal(config.causal)
                           .dropout(is_training() ? config.dropout : 0.0)
                           .block_size(config.flash_block_size);
  const auto heads = config.mode == AttentionMode::Flash ? attention(q, k, v, options)
                                                         : standard_attention(q, k, v, options);
  return out_proj(heads.transpose(1, 2).flatten(2));
}

}  // namespace flash
