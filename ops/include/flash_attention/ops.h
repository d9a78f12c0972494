#pragma once
// The C++ interface of `torch.ops.flash.*`: exact attention on the CPU in O(N) memory, forward and
// backward.
//
// Sources: Dao et al., "FlashAttention" (arXiv:2205.14135), algorithm 1 and appendix B.2
// (backward); Dao, "FlashAttention-2" (arXiv:2307.08691), section 3.1.

#include <ATen/core/Tensor.h>
#include <flash_attention/export.h>
#include <torch/arg.h>

#include <cstdint>
#include <optional>
#include <tuple>

namespace flash {

/// A query at position p attends the keys at positions p - left … p + right; -1 means unbounded.
struct Window {
  int64_t left = -1;
  int64_t right = -1;
};

/// Options of `attention`, named as in `torch.ops.flash.attention`.
///
///     auto out = flash::attention(q, k, v, flash::AttentionOptions().causal(true).dropout(0.1));
struct AttentionOptions {
  /// Floating: added to `scale * q k^T`, -inf masks a key. bool: True where a query may attend.
  /// Broadcasts to [B, H, L, S] as in NumPy. A floating bias is differentiable. Default: none.
  TORCH_ARG(std::optional<at::Tensor>, bias);
  /// A query attends the keys at positions up to its own. The queries are at the last L of the S
  /// positions (bottom-right alignment) unless `query_positions` is given. Default: false.
  TORCH_ARG(bool, causal) = false;
  /// int64, broadcasts to [B, H, L]: the position of each query, for `causal`, `window` and
  /// `alibi_slopes`. Default: none, which means `arange(L) + S - L`.
  TORCH_ARG(std::optional<at::Tensor>, query_positions);
  /// Sliding window, as in `.window({.left = 128, .right = 0})`. Keys outside it take no time. With
  /// `causal`, right is 0. Default: unbounded.
  TORCH_ARG(Window, window) = {};
  /// [H] or [B, H] in the dtype of query: -slope |position - key| is added to the scores (ALiBi,
  /// arXiv:2108.12409). Differentiable. Default: none.
  TORCH_ARG(std::optional<at::Tensor>, alibi_slopes);
  /// c > 0: a scaled score s becomes c tanh(s / c), before anything is added to it
  /// (arXiv:2408.00118). Default: 0, which means none.
  TORCH_ARG(double, softcap) = 0.0;
  /// [H] or [B, H] in the dtype of query: attention sinks. Each row of the head has this score in
  /// its softmax, without a value, so that its weights sum to less than 1 (arXiv:2309.17453).
  /// Differentiable. Default: none.
  TORCH_ARG(std::optional<at::Tensor>, sinks);
  /// Factor on the scores. Default: none, which means 1/sqrt(D).
  TORCH_ARG(std::optional<double>, scale);
  /// Probability in [0, 1] of dropping an attention weight. Default: 0.
  TORCH_ARG(double, dropout) = 0.0;
  /// Keys per online-softmax step, at least 1. Default: 64.
  TORCH_ARG(int64_t, block_size) = 64;
  /// False forces the scalar kernels. Default: true.
  TORCH_ARG(bool, use_simd) = true;
};

/// softmax(softcap(scale * query key^T) + alibi + bias) value, without ever forming the [L, S]
/// matrix.
///
/// query [B, H, L, D], key [B, Hk, S, D] and value [B, Hv, S, Dv], with H a multiple of Hk and of
/// Hv; or [B, L, D], [B, S, D] and [B, S, Dv]. One dtype, float32, float64, bfloat16 or float16,
/// and any strides. The 16-bit types are computed in float32, and bias, alibi_slopes and sinks may
/// be float32 with them. Returns [B, H, L, Dv] (or [B, L, Dv]) in the dtype of query. A query whose
/// keys are all masked gives zeros.
///
/// Differentiable twice, and in forward mode, in query, key, value, bias, alibi_slopes and sinks.
/// Throws c10::TypeError, c10::ValueError or c10::NotImplementedError; the message says what was
/// expected.
FLASH_API at::Tensor attention(const at::Tensor& query, const at::Tensor& key,
                               const at::Tensor& value, const AttentionOptions& options = {});

/// As `attention`, and also lse [B, H, L] (or [B, L]), the log-sum-exp of each row of scores and
/// its sink: float32 for the 16-bit types, -inf where all keys of a query are masked.
/// Differentiable through both outputs.
FLASH_API std::tuple<at::Tensor, at::Tensor> attention_with_lse(
    const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
    const AttentionOptions& options = {});

/// The O(L S) reference in plain ATen operators: the same arguments, semantics and dropout mask as
/// `attention`, and derivatives of any order. Ignores `block_size` and `use_simd`.
FLASH_API at::Tensor standard_attention(const at::Tensor& query, const at::Tensor& key,
                                        const at::Tensor& value,
                                        const AttentionOptions& options = {});

/// The same with the signature of the integration guide.
FLASH_API at::Tensor standard_attention(const at::Tensor& query, const at::Tensor& key,
                                        const at::Tensor& value, double scale, bool causal);

/// bool [batch, heads, queries, keys], true where a weight is kept: the mask that the next call of
/// `attention` with this shape would use. Draws the seed from torch's CPU generator as that call
/// does. Throws c10::ValueError for a negative size or a dropout outside [0, 1].
FLASH_API at::Tensor dropout_mask(int64_t batch, int64_t heads, int64_t queries, int64_t keys,
                                  double dropout);

/// Bytes that a call allocates beyond its inputs and outputs.
struct MemoryUsage {
  int64_t forward;   ///< two statistics per row, and scratch per thread
  int64_t backward;  ///< scratch per thread
};

/// What `attention` allocates for query [batch, heads, queries, head_dim], key [batch, heads, keys,
/// head_dim] and value [batch, heads, keys, value_dim], with the kernels and the number of threads
/// that are active now. `has_bias` adds the scratch for a tile of a bias or a mask, `has_softcap`
/// that for a tile in the backward. Throws c10::TypeError for a dtype that `attention` does not
/// take, c10::ValueError for a negative size, a tensor of more than 2^47 bytes, or a block_size
/// below 1.
///
/// Not counted are copies of an input or a grad_out whose last dimension is not contiguous; float32
/// copies of 16-bit alibi_slopes and sinks; the float32 out that a recorded call of 16-bit inputs
/// keeps for its gradients; the float64 sums for the gradient of a float32 bias that broadcasts,
/// twice the size of the bias; and a few elements per row for the gradients of alibi_slopes and
/// sinks.
FLASH_API MemoryUsage attention_memory(int64_t batch, int64_t heads, int64_t queries, int64_t keys,
                                       int64_t head_dim, int64_t value_dim, at::ScalarType dtype,
                                       int64_t block_size = 64, bool use_simd = true,
                                       bool has_bias = false, bool has_softcap = false);

}  // namespace flash
