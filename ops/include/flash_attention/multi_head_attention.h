#pragma once
// Multi-head attention as a torch::nn module, with flash or standard attention. Not in ops.h, since
// torch's module headers are slow to compile.

#include <flash_attention/export.h>
#include <torch/nn/cloneable.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/pimpl.h>

#include <cstdint>

namespace flash {

/// The implementation of attention. Both give the same result up to rounding.
enum class AttentionMode {
  Flash,     ///< `flash::attention`, O(L) memory
  Standard,  ///< `flash::standard_attention`, O(L^2) memory
};

/// An aggregate: `d_model` and `num_heads` are required, the rest have defaults.
struct MultiHeadAttentionConfig {
  /// Width of query, key, value and output; a multiple of `num_heads`.
  int64_t d_model = 0;
  /// Number of heads, each of width d_model / num_heads.
  int64_t num_heads = 0;
  /// Probability in [0, 1] of dropping an attention weight, while the module is training.
  double dropout = 0.0;
  /// A query attends the keys up to its own position; the queries are at the last positions
  /// (bottom-right alignment).
  bool causal = false;
  AttentionMode mode = AttentionMode::Flash;
  /// Keys per online-softmax step. `AttentionMode::Standard` ignores it.
  int64_t flash_block_size = 64;
};

/// softmax(Q_h K_h^T / sqrt(d_model / num_heads)) V_h for each head h, with the heads merged and
/// projected (Vaswani et al., arXiv:1706.03762, section 3.2.2). The projections `q_proj`, `k_proj`,
/// `v_proj` and `out_proj` have a bias, and their names are those of the Python module.
///
///     flash::MultiHeadAttention attention(
///         flash::MultiHeadAttentionConfig{.d_model = 512, .num_heads = 8, .dropout = 0.1});
///
/// Throws c10::ValueError if d_model is not a positive multiple of num_heads.
class FLASH_API MultiHeadAttentionImpl : public torch::nn::Cloneable<MultiHeadAttentionImpl> {
 public:
  explicit MultiHeadAttentionImpl(MultiHeadAttentionConfig config);

  void reset() override;

  /// query [B, L, d_model]; key and value [B, S, d_model]; returns [B, L, d_model].
  /// Throws c10::ValueError for other shapes.
  torch::Tensor forward(const torch::Tensor& query, const torch::Tensor& key,
                        const torch::Tensor& value);

  MultiHeadAttentionConfig config;
  torch::nn::Linear q_proj{nullptr}, k_proj{nullptr}, v_proj{nullptr}, out_proj{nullptr};
};

TORCH_MODULE(MultiHeadAttention);

}  // namespace flash
