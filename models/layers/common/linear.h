#pragma once
// Linear layers, where a training step spends most of its time. float32 uses the oneDNN that is
// built into torch where that is faster, with AVX-512, unless FLASH_ATTENTION_ONEDNN is off;
// otherwise ATen. Where torch's float32 matmul precision asks for it and the CPU has matrix tiles,
// the products of layers are formed on those (matrix_product.h), forward and backward.

#include <ATen/core/Tensor.h>
#include <flash_attention/dropout.h>
#include <flash_attention/export.h>

namespace flash::models {

/// A layer's weight [out, in] and bias [out], which may be undefined.
struct LinearWeights {
  at::Tensor weight, bias;
};

/// x weight^T + bias: x [.., in], weight [out, in], bias [out] or undefined -> [.., out]. Like
/// torch::linear, differentiable any number of times.
FLASH_API at::Tensor linear(const at::Tensor& x, const at::Tensor& weight,
                            const at::Tensor& bias = {});

/// activation(x weight^T + bias), fused where oneDNN is used. Not differentiable.
FLASH_API at::Tensor activated_linear(const at::Tensor& x, const at::Tensor& weight,
                                      const at::Tensor& bias, Activation activation);

/// Whether the kernels of this library support x: float32 or float64 on the CPU, without autocast.
bool fits_kernels(const at::Tensor& x);

/// Whether x is its values and nothing else: no tangent of forward mode, no wrapper of torch.func.
/// With gradients off, ATen still follows both, and a loop over the values would drop them.
bool is_plain(const at::Tensor& x);

/// Like `linear`, for use inside the forward or backward of an autograd function. With grad mode on
/// (a backward with create_graph) it uses ATen, which records the graph.
at::Tensor product(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias = {});

/// g^T x, the gradient of a weight, for g [rows, out] and x [rows, in]; for use like `product`.
/// With grad mode off, the same bits on any number of threads.
at::Tensor weight_gradient(const at::Tensor& g, const at::Tensor& x);

}  // namespace flash::models
