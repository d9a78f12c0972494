#pragma once
// Autoformer's aggregation of a series over time delays, and its adjoint, correlation at time
// delays.
//
// Source: Wu et al., "Autoformer" (arXiv:2106.13008), section 3.2, equations 5 and 6: Roll and the
// weighted sum over the k delays of largest autocorrelation.

#include <ATen/core/Tensor.h>
#include <flash_attention/export.h>

namespace flash {

/// out[b, t, c] = sum over i of weights[b, i] * value[b, (t + delays[b, i]) mod T, c]
///
/// value [B, T, C], float32 or float64; delays int64 [B, k], or [1, k] to share them across the
/// batch, any values, taken modulo T; weights [B, k] in the dtype of value. Returns [B, T, C]. A
/// copy is made only if the channels of value are not contiguous. Differentiable in value and
/// weights, any number of times. Throws c10::TypeError or c10::ValueError; the message says what
/// was expected.
FLASH_API at::Tensor time_delay_aggregation(const at::Tensor& value, const at::Tensor& delays,
                                            const at::Tensor& weights);

/// out[b, i] = mean over c of (sum over t of query[b, (t + delays[b, i]) mod T, c] * key[b, t, c])
///
/// query and key [B, T, C] of the same dtype, float32 or float64; delays as above. Returns [B, k],
/// the correlation at these delays only, without a Fourier transform. Differentiable in query and
/// key, any number of times. Throws c10::TypeError or c10::ValueError; the message says what was
/// expected.
FLASH_API at::Tensor time_delay_correlation(const at::Tensor& query, const at::Tensor& key,
                                            const at::Tensor& delays);

}  // namespace flash
