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

/// Reads a whole file. Supports every dtype of the format that torch 2.13 has.
///
/// Throws c10::ValueError naming the file, and the tensor where the error concerns only one, if the
/// file cannot be opened or is truncated, if the header is too large or malformed, or if offsets
/// lie outside the file, leave a gap, overlap, or contradict shape and dtype.
FLASH_API SafetensorsFile read_safetensors(const std::string& path);

/// Writes `tensors` (CPU, dense, any strides) and `metadata`. The file is renamed to `path` once it
/// is complete, so a full disk never leaves half a model.
///
/// Throws c10::ValueError if the format has no name for a dtype or the file cannot be written.
FLASH_API void write_safetensors(const std::string& path, const TensorMap& tensors,
                                 const Metadata& metadata = {});

/// Parameters and buffers under the names of Python's `state_dict()`. The tensors share memory with
/// the module.
FLASH_API TensorMap state_dict(const torch::nn::Module& module);

/// Copies `tensors` into the parameters and buffers of `module`, cast to their dtypes.
///
/// Names and shapes must match exactly. Tensors that are not weights are ignored: those of
/// neuralforecast's losses (`loss.*`, `valid_loss.*`, `__hparams__.*`) and TFT's constant mask. A
/// parameter that FEDformer's layers share may be given under one or several of its names in
/// neuralforecast. Throws c10::ValueError listing missing names, unexpected names, wrong shapes or
/// dtypes, and contradictions, before it changes anything.
FLASH_API void load_state_dict(torch::nn::Module& module, const TensorMap& tensors);

}  // namespace flash::models
