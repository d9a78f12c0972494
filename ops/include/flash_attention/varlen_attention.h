#pragma once
// Attention of sequences of unequal lengths, packed one behind the other without padding.

#include <ATen/core/Tensor.h>
#include <flash_attention/export.h>
#include <flash_attention/ops.h>

namespace flash {

/// flash::attention of each of N sequences with itself or its own keys.
///
/// query [Tq, H, D], key [Tk, Hk, D], value [Tk, Hv, Dv], dtypes as `attention`: the rows of all
/// sequences, those of sequence n being rows cu_seqlens_q[n] … cu_seqlens_q[n + 1] - 1 of query and
/// cu_seqlens_k[n] … cu_seqlens_k[n + 1] - 1 of key and value. Both int32 or int64 [N + 1] on the
/// CPU, from 0 to Tq and Tk, never falling; a sequence may be empty. Returns [Tq, H, Dv].
///
/// `options` as of flash::attention, of each sequence by itself: causal and window count from the
/// end of its keys, alibi_slopes and sinks are [H] or [N, H]. bias and query_positions, which would
/// need a place for each sequence, are not taken. Differentiable once in query, key, value,
/// alibi_slopes and sinks.
/// Throws c10::TypeError, c10::ValueError or c10::NotImplementedError naming what was expected.
FLASH_API at::Tensor varlen_attention(const at::Tensor& query, const at::Tensor& key,
                                      const at::Tensor& value, const at::Tensor& cu_seqlens_q,
                                      const at::Tensor& cu_seqlens_k,
                                      const AttentionOptions& options = {});

}  // namespace flash
