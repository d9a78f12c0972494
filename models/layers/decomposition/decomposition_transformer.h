#pragma once
// The network that Autoformer and FEDformer share (Wu et al., "Autoformer", arXiv:2106.13008,
// section 3.1): an encoder and a decoder that remove the trend from their tokens after every step.
// The attention mechanism is each model's own.

#include <flash_attention/dropout.h>
#include <flash_attention/models/model_config.h>

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "layers/common/attention_mechanism.h"

namespace flash::models {

class DataEmbeddingImpl;
class DecompositionEncoderImpl;
class DecompositionDecoderImpl;

/// The attention mechanism: the model's own, or exact softmax attention with the same projections,
/// computed in one of two ways.
enum class AttentionChoice { kNative, kStandard, kFlash };

/// Sizes and switches of `DecompositionTransformer`.
struct DecompositionTransformerOptions {
  int64_t h, input_size, label_length;
  int64_t exog_size;  ///< columns of futr_exog
  int64_t outputs;    ///< outputs per step
  int64_t hidden_size, heads, inner_size;
  Activation activation;
  double dropout;
  int64_t encoder_layers, decoder_layers;
  int64_t window;  ///< of the moving average, odd
  AttentionChoice attention;
  ModelConfig config;
};

/// The mechanisms: all layers of a kind share one.
struct SharedMechanisms {
  std::shared_ptr<AttentionMechanism> encoder_self, decoder_self, decoder_cross;
};

/// Registers its modules in the model, because neuralforecast has no module around them. A shared
/// mechanism is registered in the first layer of its kind only, so that its parameters are counted,
/// saved and updated once.
class DecompositionTransformer {
 public:
  /// Calls `make_mechanisms` at the point where neuralforecast draws their weights.
  void register_in(torch::nn::Module& owner, const DecompositionTransformerOptions& options,
                   const std::function<SharedMechanisms()>& make_mechanisms);

  /// insample_y [B, input_size, 1], futr_exog [B, input_size + h, F] -> [B, h, outputs]
  at::Tensor forward(const at::Tensor& series, const at::Tensor& futr_exog) const;

  /// See ForecastModel::tied_parameters.
  std::map<std::string, std::string> tied_parameters() const;

 private:
  DecompositionTransformerOptions options_{};
  SharedMechanisms mechanisms_;
  std::shared_ptr<DataEmbeddingImpl> encoder_embedding_, decoder_embedding_;
  std::shared_ptr<DecompositionEncoderImpl> encoder_;
  std::shared_ptr<DecompositionDecoderImpl> decoder_;
};

/// For `clone`: gives `copy`, which is built from the same options, the parameters, their dtypes
/// and requires_grad, and the mode of `original`. Cloneable's own clone would give each layer its
/// own mechanism instead of a shared one.
void copy_parameters(const torch::nn::Module& original, torch::nn::Module& copy,
                     const std::optional<torch::Device>& device);

}  // namespace flash::models
