#pragma once
// The C++ face of `torch.ops.flash.*`: exact attention on the CPU in O(N) memory, forward and
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

/// The keys around a query's position p that it attends, p - left … p + right; -1: unbounded.
struct Window {
  int64_t left = -1;
  int64_t right = -1;
};

/// Options of `attention`, named as in `torch.ops.flash.attention`.
///
///     auto out = flash::attention(q, k, v, flash::AttentionOptions().causal(true).dropout(0.1));
struct AttentionOptions {
  /// Added to `scale * q k^T` (floating) or True where a query may attend (bool). Broadcasts to
  /// [B, H, L, S] like NumPy. A floating bias is differentiable. Default: none.
  TORCH_ARG(std::optional<at::Tensor>, bias);
  /// A query attends the keys at positions up to its own. The queries are the last L of the S
  /// positions (bottom-right) unless `query_positions` says otherwise. Default: false.
  TORCH_ARG(bool, causal) = false;
  /// int64, broadcastable to [B, H, L]: the position of each query, used by `causal`, `window` and
  /// `alibi_slopes`. Default: none, that is `arange(L) + S - L`.
  TORCH_ARG(std::optional<at::Tensor>, query_positions);
  /// Sliding window, as in `.window({.left = 128, .right = 0})`. Keys outside cost nothing. With
  /// `causal` its right end is 0. Default: unbounded.
  TORCH_ARG(Window, window) = {};
  /// [H] or [B, H] in the dtype of query: -slope |position - key| is added to the scores (ALiBi,
  /// arXiv:2108.12409). Differentiable. Default: none.
  TORCH_ARG(std::optional<at::Tensor>, alibi_slopes);
  /// c > 0: a scaled score s becomes c tanh(s / c), before anything is added
  /// (arXiv:2408.00118). Default: 0, off.
  TORCH_ARG(double, softcap) = 0.0;
  /// [H] or [B, H] in the dtype of query: a score that takes part in the softmax of each row of the
  /// head and has no value, so that the weights of a row sum up to less than 1 (arXiv:2309.17453).
  /// Differentiable. Default: none.
  TORCH_ARG(std::optional<at::Tensor>, sinks);
  /// Factor on the scores. Default: none, that is 1/sqrt(D).
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
/// query [B, H, L, D] or [B, L, D]; key [B, Hk, S, D]; value [B, Hv, S, Dv], with H a multiple of
/// Hk and of Hv. float32, float64, bfloat16 or float16, one dtype, any strides; the 16-bit ones are
/// computed in float32, which bias, alibi_slopes and sinks beside them may be of. Returns
/// [B, H, L, Dv] (or [B, L, Dv]).
/// A query with nothing to attend gives zeros. Differentiable twice, and in forward mode, in query,
/// key, value, bias, alibi_slopes and sinks.
/// Throws c10::TypeError, c10::ValueError or c10::NotImplementedError naming what was expected.
FLASH_API at::Tensor attention(const at::Tensor& query, const at::Tensor& key,
                               const at::Tensor& value, const AttentionOptions& options = {});

/// As `attention`, and also lse [B, H, L] (or [B, L]): the logarithm of each row's sum of
/// exponentials, float32 for 16-bit inputs, that of its sink among them, -inf where a query has
/// nothing to attend. Differentiable through both outputs.
FLASH_API std::tuple<at::Tensor, at::Tensor> attention_with_lse(
    const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
    const AttentionOptions& options = {});

/// The O(L S) reference, in plain ATen: the same arguments, semantics and dropout mask as
/// `attention` (`block_size` and `use_simd` have no meaning here), and any number of derivatives.
FLASH_API at::Tensor standard_attention(const at::Tensor& query, const at::Tensor& key,
                                        const at::Tensor& value,
                                        const AttentionOptions& options = {});

/// The guide's spelling of the reference.
FLASH_API at::Tensor standard_attention(const at::Tensor& query, const at::Tensor& key,
                                        const at::Tensor& value, double scale, bool causal);

/// bool [batch, heads, queries, keys], true where a weight is kept: the mask that the next call of
/// `attention` with this shape would use, drawn from torch's CPU generator in the same way.
FLASH_API at::Tensor dropout_mask(int64_t batch, int64_t heads, int64_t queries, int64_t keys,
                                  double dropout);

/// Bytes that one call allocates beyond its inputs and outputs.
struct MemoryUsage {
  int64_t forward;   ///< two numbers per row, and scratch per thread
  int64_t backward;  ///< scratch per thread
};

/// What `attention` allocates for query [batch, heads, queries, head_dim], key of `keys` rows and
/// value of width `value_dim`, with the kernels and the number of threads that are active now.
/// `has_bias` adds the tile of a bias or a mask, a part of the scratch, and `has_softcap` one for
/// the backward. Copies are not in it: of an input whose last dimension is not contiguous, of a
/// grad_out like that, and of alibi_slopes and sinks of 16 bits, in float32; nor out in float32,
/// which a recorded call of 16-bit inputs keeps for its gradients; nor what gradients of other
/// inputs are summed up in: the float64 sums of a broadcast bias, twice its size, and a few numbers
/// per row for alibi_slopes and for sinks.
FLASH_API MemoryUsage attention_memory(int64_t batch, int64_t heads, int64_t queries, int64_t keys,
                                       int64_t head_dim, int64_t value_dim, at::ScalarType dtype,
                                       int64_t block_size = 64, bool use_simd = true,
                                       bool has_bias = false, bool has_softcap = false);

}  // namespace flash
