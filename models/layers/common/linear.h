#pragma once
// Linear layers, where a training step spends most of its time. float32 and float64 use
// matrix_product, which is faster than the MKL and the oneDNN in torch, and on matrix tiles where
// torch's float32 matmul precision allows it; a few rows, as of a single window, use
// kernels::linear_rows, which does not lay out the weight. Other types use ATen.

#include <ATen/core/Tensor.h>
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

/// Whether the kernels of this library support x: float32 or float64 on the CPU, without autocast.
bool fits_kernels(const at::Tensor& x);

/// Whether x is its values and nothing else: no tangent of forward mode, no wrapper of torch.func
/// or of batched gradients, no negative bit. With gradients off, ATen still follows all of them,
/// and a loop over the values would drop them.
bool is_plain(const at::Tensor& x);

/// Whether `linear` uses linear_of_rows for so many rows.
bool has_few_rows(int64_t rows, const at::Tensor& weight);

/// `linear` without autograd, from kernels::linear_rows: float32 or float64 with contiguous rows of
/// `weight`, not empty. A row of the result has the same bits on any number of threads, and
/// whatever the other rows are.
at::Tensor linear_of_rows(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias);

/// Like `linear`, for use inside the forward or backward of an autograd function. With grad mode on
/// (a backward with create_graph) it uses ATen, which records the graph.
at::Tensor product(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias = {});

/// g^T x, the gradient of a weight, for g [rows, out] and x [rows, in]; for use like `product`.
/// With grad mode off, the same bits on any number of threads.
at::Tensor weight_gradient(const at::Tensor& g, const at::Tensor& x);

/// rows [R, C] -> [C], like rows.sum(0), with the same bits on any number of threads.
FLASH_API at::Tensor sum_of_rows(const at::Tensor& rows);

/// x + bias: x [.., C], bias [C]. The gradient of the bias is that of sum_of_rows.
at::Tensor with_bias(const at::Tensor& x, const at::Tensor& bias);

/// left right for each matrix of a batch: left [N, m, k], right [N, k, n] -> [N, m, n]; for use
/// like `product`.
at::Tensor batched_product(const at::Tensor& left, const at::Tensor& right);

}  // namespace flash::models
