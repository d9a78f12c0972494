#pragma once
// Two linear layers with an activation and dropout between them as one differentiable function.
//
// It goes through its rows block by block: what the second layer reads is still in a cache from the
// first. For the backward nothing but the result of the first layer is kept, the widest matrix of a
// transformer once instead of twice; activation and mask are formed again together with their
// derivative, and the gradients of both wide matrices exist for one block only.

#include <ATen/core/Tensor.h>
#include <flash_attention/dropout.h>
#include <flash_attention/export.h>

#include "layers/common/linear.h"

namespace flash::models {

/// second(dropout(activation(first(x)))) of x [.., in] -> [.., out], all float32 or float64 on the
/// CPU, of one dtype. The mask is that of `activation_dropout` on first(x). Differentiable once: a
/// second derivative throws c10::NotImplementedError.
FLASH_API at::Tensor blocked_feed_forward(const at::Tensor& x, const LinearWeights& first,
                                          const LinearWeights& second, Activation activation,
                                          double dropout);

}  // namespace flash::models
