#pragma once
// Gradient checkpointing: memory for time. What a block computes is not kept for the backward but
// computed again there (Chen et al., "Training Deep Nets with Sublinear Memory Cost",
// arXiv:1604.06174).

#include <ATen/core/Tensor.h>
#include <flash_attention/export.h>

#include <functional>
#include <memory>
#include <vector>

namespace torch::nn {
class Module;
}

namespace flash::models {

/// A block that returns one tensor, or several.
using Block = std::function<at::Tensor(const std::vector<at::Tensor>&)>;
using BlockOfSeveral = std::function<std::vector<at::Tensor>(const std::vector<at::Tensor>&)>;

// block(inputs), with the same outputs and gradients as without it, while only `inputs` are kept
// until the backward. The block runs again there: with the numbers it drew from torch's CPU
// generator before, under the same autocast settings, after which the generator goes on as if
// nothing had happened.
//
//     x = gradient_checkpoint(
//         [layer](const std::vector<at::Tensor>& in) { return layer->forward(in[0], in[1]); },
//         {x, memory}, *layer);
//
// The block must read every tensor that needs a gradient through its argument or be given it in
// `parameters`, and must own what it uses (capture a shared_ptr): it outlives this call. It must
// compute the same again: a layer must not change between train() and eval() before the backward.
// Inputs may be undefined; outputs may be too, but for the same ones both times. Works with
// backward() and autograd::grad() of first derivatives; a second derivative throws
// c10::NotImplementedError. Without a gradient to compute it is a plain call of the block.

/// `parameters`: what the block uses besides its inputs and may need a gradient.
FLASH_API at::Tensor gradient_checkpoint(const Block& block, const std::vector<at::Tensor>& inputs,
                                         const std::vector<at::Tensor>& parameters);
FLASH_API std::vector<at::Tensor> gradient_checkpoint(const BlockOfSeveral& block,
                                                      const std::vector<at::Tensor>& inputs,
                                                      const std::vector<at::Tensor>& parameters);

/// All parameters of `module`. Its buffers are put back after the recomputation, so that the
/// statistics of a batch norm move once per step.
FLASH_API at::Tensor gradient_checkpoint(const Block& block, const std::vector<at::Tensor>& inputs,
                                         const torch::nn::Module& module);
FLASH_API std::vector<at::Tensor> gradient_checkpoint(const BlockOfSeveral& block,
                                                      const std::vector<at::Tensor>& inputs,
                                                      const torch::nn::Module& module);

}  // namespace flash::models
