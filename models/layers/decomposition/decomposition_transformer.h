#pragma once
// The network that Autoformer and FEDformer share (Wu et al., "Autoformer", arXiv:2106.13008,
// section 3.1): an encoder and a decoder that take the trend out of their tokens after every step,
// around an inner mechanism that is each model's own.

#include <flash_attention/dropout.h>
#include <flash_attention/models/model_config.h>

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "layers/decomposition/inner_mechanism.h"

namespace flash::models {

class DataEmbeddingImpl;
class DecompositionEncoderImpl;
class DecompositionDecoderImpl;

/// What stands where other transformers have attention: the model's own mechanism, or exact softmax
/// attention with the same projections, computed in one of two ways.
enum class AttentionChoice { kNative, kStandard, kFlash };

/// Sizes and switches of `DecompositionTransformer`.
struct DecompositionTransformerOptions {
  int64_t h, input_size, label_length;
  int64_t exog_size;  ///< columns of futr_exog
  int64_t outputs;    ///< numbers per step
  int64_t hidden_size, heads, inner_size;
  Activation activation;
  double dropout;
  int64_t encoder_layers, decoder_layers;
  int64_t window;  ///< of the moving average, odd
  AttentionChoice attention;
  ModelConfig config;
};

/// One for all layers of a kind.
struct InnerMechanisms {
  std::shared_ptr<InnerMechanism> encoder_self, decoder_self, decoder_cross;
};

/// Registers its modules in the model, which has none of its own around them. A mechanism is
/// registered in the first layer of its kind and only used by the others, so that its parameters
/// are counted, saved and stepped once.
class DecompositionTransformer {
 public:
  /// `make_mechanisms` is called when the original draws their weights.
  void register_in(torch::nn::Module& owner, const DecompositionTransformerOptions& options,
                   const std::function<InnerMechanisms()>& make_mechanisms);

  /// insample_y [B, input_size, 1], futr_exog [B, input_size + h, F] -> [B, h, outputs]
  at::Tensor forward(const at::Tensor& series, const at::Tensor& futr_exog) const;

  /// The names under which neuralforecast has a parameter of a shared mechanism again, and the one
  /// under which it is registered.
  std::map<std::string, std::string> tied_parameters() const;

 private:
  DecompositionTransformerOptions options_{};
  InnerMechanisms mechanisms_;
  std::shared_ptr<DataEmbeddingImpl> encoder_embedding_, decoder_embedding_;
  std::shared_ptr<DecompositionEncoderImpl> encoder_;
  std::shared_ptr<DecompositionDecoderImpl> decoder_;
};

/// As `clone` is for other modules: `copy`, built from the same options, takes over parameters (and
/// their dtype), what is trained, and the mode. Cloneable's own would give each layer a mechanism
/// of its own, where layers share one.
void copy_parameters(const torch::nn::Module& original, torch::nn::Module& copy,
                     const std::optional<torch::Device>& device);

}  // namespace flash::models
