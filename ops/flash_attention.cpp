#include <flash_attention/flash_attention.h>

namespace flash {

FlashAttention::FlashAttention(FlashAttentionConfig config) : config_(config) {}

at::Tensor FlashAttention::forward(const at::Tensor& query, const at::Tensor& key,
                                   const at::Tensor& value) const {
  return attention(query, key, value,
                   AttentionOptions()
                       .causal(config_.causal)
                       .scale(config_.scale)
                       .dropout(config_.dropout)
                       .block_size(config_.block_size)
                       .use_simd(config_.use_simd));
}

int64_t FlashAttention::memory_usage(int64_t seq_len, int64_t d_k, int64_t d_v,
                                     int64_t batch) const {
  constexpr int64_t kHeads = 1;
  return attention_memory(batch, kHeads, seq_len, seq_len, d_k, d_v, at::kDouble,
                          config_.block_size, config_.use_simd)
      .forward;
}

double FlashAttention::memory_savings_ratio(int64_t seq_len, int64_t d_k, int64_t d_v,
                                            int64_t batch) const {
  const double length = static_cast<double>(seq_len);
  const double scores = static_cast<double>(batch) * length * length * sizeof(double);
  return scores / static_cast<double>(memory_usage(seq_len, d_k, d_v, batch));
}

}  // namespace flash
