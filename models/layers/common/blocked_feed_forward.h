#pragma once
// Two linear layers with an activation and dropout between them as one differentiable function.
//
// Rows are processed in blocks, so that the second layer finds the result of the first in the
// cache. The backward keeps only the result of the first layer: the widest matrix of a transformer
// is stored once instead of twice. It recomputes activation and dropout mask together with their
// derivative, and the gradients of both wide matrices exist for one block at a time.

#include <ATen/core/Tensor.h>
#include <flash_attention/dropout.h>
#include <flash_attention/export.h>

#include "layers/common/linear.h"

namespace flash::models {

/// second(dropout(activation(first(x)))), x [.., in] -> [.., out], float32 or float64 on the CPU.
/// Draws the same mask as `activation_dropout` on first(x). Differentiable once: a second
/// derivative throws c10::NotImplementedError.
FLASH_API at::Tensor blocked_feed_forward(const at::Tensor& x, const LinearWeights& first,
                                          const LinearWeights& second, Activation activation,
                                          double dropout);

}  // namespace flash::models
