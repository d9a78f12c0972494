#pragma once
// Attention of sequences of unequal lengths, concatenated without padding.

#include <ATen/core/Tensor.h>
#include <flash_attention/export.h>
#include <flash_attention/ops.h>

namespace flash {

/// flash::attention of each of N sequences, over its own keys.
///
/// query [Tq, H, D], key [Tk, Hk, D] and value [Tk, Hv, Dv] concatenate the rows of all sequences;
/// dtypes as for `attention`. Sequence n has rows cu_seqlens_q[n] … cu_seqlens_q[n + 1] - 1 of
/// query and cu_seqlens_k[n] … cu_seqlens_k[n + 1] - 1 of key and value. cu_seqlens_q and
/// cu_seqlens_k are int32 or int64 [N + 1] on the CPU and increase from 0 to Tq and to Tk; a
/// sequence may be empty. Returns [Tq, H, Dv].
///
/// `options` apply to each sequence as in flash::attention: causal and window are aligned to the
/// end of its keys, and alibi_slopes and sinks are [H] or [N, H]. bias and query_positions are not
/// supported. Differentiable once in query, key, value, alibi_slopes and sinks.
/// Throws c10::TypeError, c10::ValueError or c10::NotImplementedError; the message says what was
/// expected.
FLASH_API at::Tensor varlen_attention(const at::Tensor& query, const at::Tensor& key,
                                      const at::Tensor& value, const at::Tensor& cu_seqlens_q,
                                      const at::Tensor& cu_seqlens_k,
                                      const AttentionOptions& options = {});

}  // namespace flash
