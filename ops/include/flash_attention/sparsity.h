#pragma once
// Informer's query sparsity measurement.
//
// Source: Zhou et al., "Informer" (arXiv:2012.07436), section 3.1, equation 4 (the max-mean
// measurement), with keys sampled as in algorithm 1.

#include <ATen/core/Tensor.h>
#include <flash_attention/export.h>

namespace flash {

/// How far the attention of each query is from uniform:
///
///     out[b, h, i] = max over j of s_ij - (sum over j of s_ij) / Lk,
///     s_ij = query[b, h, i] . key[b, h, index[i, j]]
///
/// query [B, H, Lq, d] and key [B, H, Lk, d] of the same dtype, float32 or float64; index int64
/// [Lq, U] with U at least 1 and values in [0, Lk). Returns [B, H, Lq]. Any strides; a copy is made
/// only if the last dimension is not contiguous. The sum is divided by the number of keys, not of
/// samples, as in Informer's code. The sampled keys are read in place, never gathered. Not
/// differentiable: the result only ranks queries and requires no gradient. Throws c10::TypeError or
/// c10::ValueError; the message says what was expected.
FLASH_API at::Tensor sparsity_measurement(const at::Tensor& query, const at::Tensor& key,
                                          const at::Tensor& index);

}  // namespace flash
