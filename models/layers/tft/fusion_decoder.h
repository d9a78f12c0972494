#pragma once
// TFT's decoder, from the static enrichment on (arXiv:1912.09363, sections 4.5.2 to 4.5.4).

#include <torch/nn/cloneable.h>

#include "layers/tft/gated_residual_network.h"
#include "layers/tft/interpretable_attention.h"

namespace flash::models {

class FusionDecoderImpl : public torch::nn::Cloneable<FusionDecoderImpl> {
 public:
  FusionDecoderImpl(InterpretableAttentionOptions attention, GatedActivation activation);
  void reset() override;

  /// features [T B, hidden_size], row t B + b for step t of window b; enrichment [B, hidden_size]
  /// or [1, hidden_size] -> the last `queries` steps, [queries B, hidden_size].
  torch::Tensor forward(const torch::Tensor& features, const torch::Tensor& enrichment,
                        int64_t batch, int64_t queries);

 private:
  InterpretableAttentionOptions options_;
  GatedActivation activation_;
  GatedResidualNetwork enrichment_{nullptr}, positionwise_{nullptr};
  InterpretableAttention attention_{nullptr};
  GatedLinearUnit attention_gate_{nullptr}, decoder_gate_{nullptr};
  torch::nn::LayerNorm attention_norm_{nullptr}, decoder_norm_{nullptr};
};
TORCH_MODULE(FusionDecoder);

}  // namespace flash::models
