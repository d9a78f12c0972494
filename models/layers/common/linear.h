#pragma once
// Linear maps, the bulk of a training step. Where it takes less time, float32 goes through oneDNN
// as torch has it built in, unless FLASH_ATTENTION_ONEDNN is off; else through ATen.

#include <ATen/core/Tensor.h>
#include <flash_attention/dropout.h>
#include <flash_attention/export.h>

namespace flash::models {

/// A layer's weight [out, in] and bias [out], which may be undefined.
struct LinearWeights {
  at::Tensor weight, bias;
};

/// x weight^T + bias: x [.., in], weight [out, in], bias [out] or undefined -> [.., out]. As
/// torch::linear, differentiable any number of times.
FLASH_API at::Tensor linear(const at::Tensor& x, const at::Tensor& weight,
                            const at::Tensor& bias = {});

/// activation(x weight^T + bias), in one pass where oneDNN does it. Not differentiable.
FLASH_API at::Tensor activated_linear(const at::Tensor& x, const at::Tensor& weight,
                                      const at::Tensor& bias, Activation activation);

/// Whether the kernels of this library take x: float32 or float64 on the CPU, without autocast.
bool fits_kernels(const at::Tensor& x);

/// As `linear`, for the forward or backward of an autograd function: records a gradient only
/// through ATen, in a backward with create_graph.
at::Tensor product(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias = {});

}  // namespace flash::models
