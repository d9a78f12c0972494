// Meta: shapes and layouts only, for torch.compile, torch.export and fake tensors.

#include <ATen/ATen.h>
#include <torch/library.h>

#include "ops/operator.h"

namespace flash {
namespace {

ForwardResult forward_meta(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                           const std::optional<at::Tensor>& bias, bool,
                           const std::optional<at::Tensor>& query_positions, std::optional<double>,
                           double dropout, int64_t block_size, bool) {
  const Sizes s = check_attention(query, key, value, bias, query_positions, dropout, block_size);
  return {empty_out(query, value, s), empty_row_stats(query, s), empty_seed(query, dropout)};
}

BackwardResult backward_meta(const at::Tensor&, const std::optional<at::Tensor>&,
                             const at::Tensor& query, const at::Tensor& key,
                             const at::Tensor& value, const at::Tensor&, const at::Tensor&,
                             const at::Tensor&,
                             const std::optional<at::Tensor>& bias, bool,
                             const std::optional<at::Tensor>&, std::optional<double>, double,
                             int64_t, bool, std::array<bool, 4> needed) {
  return {empty_grad(needed[0], query), empty_grad(needed[1], key), empty_grad(needed[2], value),
          needed[3] ? at::empty_symint(bias->sym_sizes(), bias->options()) : allocate({0}, query)};
}

at::Tensor attention_meta(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                          const std::optional<at::Tensor>& bias, bool causal,
                          const std::optional<at::Tensor>& query_positions,
                          std::optional<double> scale, double dropout, int64_t block_size,
                          bool use_simd) {
  return std::get<0>(forward_meta(query, key, value, bias, causal, query_positions, scale, dropout,
                                  block_size, use_simd));
}

std::tuple<at::Tensor, at::Tensor> attention_with_lse_meta(
    const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
    const std::optional<at::Tensor>& bias, bool causal,
    const std::optional<at::Tensor>& query_positions, std::optional<double> scale, double dropout,
    int64_t block_size, bool use_simd) {
  const auto result = forward_meta(query, key, value, bias, causal, query_positions, scale, dropout,
                                   block_size, use_simd);
  return {std::get<0>(result), log_sum_exp(std::get<1>(result))};
}

}  // namespace
}  // namespace flash

TORCH_LIBRARY_IMPL(flash, Meta, m) {
  m.impl("attention", flash::attention_meta);
  m.impl("attention_with_lse", flash::attention_with_lse_meta);
  m.impl("_forward", flash::forward_meta);
  m.impl("_backward", flash::backward_meta);
}
