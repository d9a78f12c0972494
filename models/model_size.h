#pragma once
// The size of a model, computed from its options before anything is built.
//
// Options come from files and users, and a header of 100 bytes can ask for 10^9 layers, so the size
// is checked before a model is built. Sizes are doubles, so that no option can overflow them.

#include <flash_attention/models/safetensors.h>

#include <string>

namespace flash::models {

struct AutoformerOptions;
struct FEDformerOptions;
struct InformerOptions;
struct ITransformerOptions;
struct PatchTSTOptions;
struct TFTOptions;

struct ModelSize {
  double bytes = 0;    ///< of parameters and buffers in float32
  double tensors = 0;  ///< number of parameters and buffers
  double tables = 0;   ///< bytes of temporary and constant tables that the constructor fills

  /// All bytes, with the overhead of tensors and modules.
  double memory() const { return bytes + tables + tensors * kBytesPerTensor; }

 private:
  static constexpr double kBytesPerTensor = 2048;  // measured: 1.7 kB
};

// The size of the state_dict(), exact for valid options. An option below 1 counts as 0; the model
// rejects it later.
FLASH_API ModelSize model_size(const AutoformerOptions& options);
FLASH_API ModelSize model_size(const FEDformerOptions& options);
FLASH_API ModelSize model_size(const InformerOptions& options);
FLASH_API ModelSize model_size(const ITransformerOptions& options);
FLASH_API ModelSize model_size(const PatchTSTOptions& options);
FLASH_API ModelSize model_size(const TFTOptions& options);

/// The most memory that a model may take, and why.
struct SizeLimit {
  double bytes;
  std::string reason;  ///< follows "expected options of a model of at most ... GB, "
};

/// Half of the available memory.
FLASH_API SizeLimit limit_of_machine();

/// For a model that is loaded from these tensors: several times their size plus a constant, so that
/// a file that lacks a few tensors still fails with their names.
FLASH_API SizeLimit limit_of_file(const TensorMap& tensors);

/// Throws c10::ValueError, beginning with `context`, if the model is too large.
void check_size(const std::string& context, const ModelSize& size, const SizeLimit& limit);

}  // namespace flash::models
