#pragma once
// Model weights as safetensors files (https://github.com/huggingface/safetensors), the format that
// `safetensors.torch` and neuralforecast read and write.

#include <ATen/core/Tensor.h>
#include <flash_attention/export.h>

#include <map>
#include <string>

namespace torch::nn {
class Module;
}

namespace flash::models {

using TensorMap = std::map<std::string, at::Tensor>;
using Metadata = std::map<std::string, std::string>;

/// The contents of one file.
struct SafetensorsFile {
  TensorMap tensors;
  Metadata metadata;
};

/// Reads a whole file: every dtype of the format that torch 2.13 has.
///
/// Throws c10::ValueError naming the file, and the tensor where it is one tensor's fault, if the
/// file cannot be opened, is cut off, or has a header that is too large, malformed, or whose
/// offsets leave the file, leave a gap, overlap, or do not fit shape and dtype.
FLASH_API SafetensorsFile read_safetensors(const std::string& path);

/// Writes `tensors` (CPU, dense, any strides) and `metadata`. The file appears under `path` only
/// once it is complete, so that a full disk never leaves half a model behind.
///
/// Throws c10::ValueError if the format has no name for a dtype, or the file cannot be written.
FLASH_API void write_safetensors(const std::string& path, const TensorMap& tensors,
                                 const Metadata& metadata = {});

/// Parameters and buffers under the names that Python's `state_dict()` gives them. The tensors
/// share their memory with the module.
FLASH_API TensorMap state_dict(const torch::nn::Module& module);

/// Copies `tensors` into the parameters and buffers of `module`, cast to their dtypes.
///
/// Names and shapes must match exactly, but for what is no weight, which is left out: tensors of
/// neuralforecast's loss functions (`loss.*`, `valid_loss.*`, `__hparams__.*`) and TFT's constant
/// mask. A parameter that FEDformer's layers share may come under any of its names in
/// neuralforecast or under all. Throws c10::ValueError listing missing names, unexpected names,
/// wrong shapes or kinds and contradictions before it changes anything.
FLASH_API void load_state_dict(torch::nn::Module& module, const TensorMap& tensors);

}  // namespace flash::models
