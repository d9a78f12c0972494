#pragma once
// TFT's contexts from the static variables (arXiv:1912.09363, section 4.3).

#include <torch/nn/cloneable.h>
#include <torch/nn/modules/container/modulelist.h>

#include "layers/tft/recurrent.h"
#include "layers/tft/variable_selection.h"

namespace flash::models {

/// The contexts of a batch.
struct StaticContext {
  torch::Tensor selection, enrichment;  ///< [B, D], or [1, D] if it is the same for all windows
  RecurrentState state;                 ///< [layers, B, D]
};

/// Sizes and switches of `StaticEncoder`.
struct StaticEncoderOptions {
  int64_t variables;
  int64_t hidden_size;
  RecurrentCell cell;
  int64_t rnn_layers;
  bool one_initial_state;  ///< the same for every recurrent layer
  double dropout;
  GatedActivation activation;
};

/// Variable selection and one gated residual network per context. As in neuralforecast, the
/// networks always use ELU, whatever `activation` is, and the selection has no context, so its
/// lin_c is never trained.
class StaticEncoderImpl : public torch::nn::Cloneable<StaticEncoderImpl> {
 public:
  explicit StaticEncoderImpl(StaticEncoderOptions options);
  void reset() override;

  /// x [B, variables]
  StaticContext forward(const torch::Tensor& x, const ScalarVectors& embedding);

 private:
  StaticEncoderOptions options_;
  int64_t states_;
  VariableSelection selection_{nullptr};
  torch::nn::ModuleList contexts_{nullptr};
};
TORCH_MODULE(StaticEncoder);

}  // namespace flash::models
