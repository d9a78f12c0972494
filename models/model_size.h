#pragma once
// How large a model would be, known from its options before anything is built.
//
// Options come from files and users, so a model is built only once its size is known to be
// possible: a header of 100 bytes can ask for 10^9 layers. The sums are in double, which no option
// overflows.

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
  double tensors = 0;  ///< their number
  double tables = 0;   ///< further bytes that the constructor fills

  /// With what a tensor and its share of a module cost beside its elements.
  double memory() const { return bytes + tables + tensors * kBytesPerTensor; }

 private:
  static constexpr double kBytesPerTensor = 2048;  // measured: 1.7 kB
};

// Exact for options that the model takes: the size of its state_dict(). An option below 1 counts as
// 0; it is for the model to refuse it.
FLASH_API ModelSize model_size(const AutoformerOptions& options);
FLASH_API ModelSize model_size(const FEDformerOptions& options);
FLASH_API ModelSize model_size(const InformerOptions& options);
FLASH_API ModelSize model_size(const ITransformerOptions& options);
FLASH_API ModelSize model_size(const PatchTSTOptions& options);
FLASH_API ModelSize model_size(const TFTOptions& options);

/// The most memory that a model may take, and why.
struct SizeLimit {
  double bytes;
  std::string reason;  ///< to follow "expected a model of at most ... GB, "
};

/// What this machine can hold.
FLASH_API SizeLimit limit_of_machine();

/// What a file with these tensors can be meant for: several times as much, and a constant, so that
/// one that lacks a few tensors is still refused by their names.
FLASH_API SizeLimit limit_of_file(const TensorMap& tensors);

/// Throws c10::ValueError, beginning with `context`, if the model is too large.
void check_size(const std::string& context, const ModelSize& size, const SizeLimit& limit);

}  // namespace flash::models
