// AutocastCPU: the kernels compute in float32, so under autocast everything is brought to it.

#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>
#include <flash_attention/ops.h>
#include <torch/library.h>

namespace flash {
namespace {

at::Tensor to_float(const at::Tensor& t) {
  return at::autocast::cached_cast(at::kFloat, t, c10::DeviceType::CPU);
}

AttentionOptions options_in_float(const std::optional<at::Tensor>& bias, bool causal,
                                  const std::optional<at::Tensor>& query_positions,
                                  std::optional<double> scale, double dropout, int64_t block_size,
                                  bool use_simd) {
  std::optional<at::Tensor> cast_bias = bias;
  if (bias.has_value() && bias->is_floating_point()) cast_bias = to_float(*bias);
  return AttentionOptions()
      .bias(cast_bias)
      .causal(causal)
      .query_positions(query_positions)
      .scale(scale)
      .dropout(dropout)
      .block_size(block_size)
      .use_simd(use_simd);
}

at::Tensor attention_autocast(const at::Tensor& query, const at::Tensor& key,
                              const at::Tensor& value, const std::optional<at::Tensor>& bias,
                              bool causal, const std::optional<at::Tensor>& query_positions,
                              std::optional<double> scale, double dropout, int64_t block_size,
                              bool use_simd) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::DispatchKey::AutocastCPU);
  return attention(
      to_float(query), to_float(key), to_float(value),
      options_in_float(bias, causal, query_positions, scale, dropout, block_size, use_simd));
}

std::tuple<at::Tensor, at::Tensor> attention_with_lse_autocast(
    const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
    const std::optional<at::Tensor>& bias, bool causal,
    const std::optional<at::Tensor>& query_positions, std::optional<double> scale, double dropout,
    int64_t block_size, bool use_simd) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::DispatchKey::AutocastCPU);
  return attention_with_lse(
      to_float(query), to_float(key), to_float(value),
      options_in_float(bias, causal, query_positions, scale, dropout, block_size, use_simd));
}

}  // namespace
}  // namespace flash

TORCH_LIBRARY_IMPL(flash, AutocastCPU, m) {
  m.impl("attention", flash::attention_autocast);
  m.impl("attention_with_lse", flash::attention_with_lse_autocast);
}
