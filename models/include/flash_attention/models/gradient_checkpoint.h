#pragma once
// Gradient checkpointing trades time for memory: the backward recomputes a block's activations
// instead of keeping them (Chen et al., "Training Deep Nets with Sublinear Memory Cost",
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

// Returns block(inputs) with unchanged outputs and gradients, but keeps only `inputs` until the
// backward, which runs the block again. That run draws the same random numbers from torch's CPU
// generator, uses the same autocast settings, and then restores the generator.
//
//     x = gradient_checkpoint(
//         [layer](const std::vector<at::Tensor>& in) { return layer->forward(in[0], in[1]); },
//         {x, memory}, *layer);
//
// Every tensor that needs a gradient must be among `inputs` or `parameters`. The block outlives
// this call, so it must own what it uses (capture a shared_ptr). It must compute the same in both
// runs: a layer must not switch between train() and eval() before the backward. Inputs may be
// undefined, and so may outputs, if they are undefined in both runs. Supports first derivatives, by
// backward() and autograd::grad(); a second derivative throws c10::NotImplementedError. If no
// gradient is needed, this is a plain call of the block.

/// `parameters`: the tensors that the block uses besides its inputs.
FLASH_API at::Tensor gradient_checkpoint(const Block& block, const std::vector<at::Tensor>& inputs,
                                         const std::vector<at::Tensor>& parameters);
FLASH_API std::vector<at::Tensor> gradient_checkpoint(const BlockOfSeveral& block,
                                                      const std::vector<at::Tensor>& inputs,
                                                      const std::vector<at::Tensor>& parameters);

/// With all parameters of `module`. Restores its buffers after the recomputation, so that the
/// statistics of a batch norm are updated once per step.
FLASH_API at::Tensor gradient_checkpoint(const Block& block, const std::vector<at::Tensor>& inputs,
                                         const torch::nn::Module& module);
FLASH_API std::vector<at::Tensor> gradient_checkpoint(const BlockOfSeveral& block,
                                                      const std::vector<at::Tensor>& inputs,
                                                      const torch::nn::Module& module);

}  // namespace flash::models
