#pragma once
// FEDformer's mechanisms in the place of attention (Zhou et al., "FEDformer", arXiv:2201.12740,
// sections 3.2 and 3.3): a few frequencies, mixed by learned complex weights. As few are needed,
// they come from a product with a table of cosines and sines, not from a Fourier transform.
//
// Kept of neuralforecast's, because numbers depend on it: the result, [B, heads, channels, T] in
// memory, is read as [B, T, heads * channels] without being transposed.

#include "layers/decomposition/inner_mechanism.h"
#include "layers/decomposition/mode_transform.h"

namespace flash::models {

/// Cosines and sines of n modes.
struct ModeTable {
  at::Tensor rows;   ///< as analysis_table gives it
  int64_t constant;  ///< which mode is frequency 0, or -1
};

/// A block with complex weights `weights1` [8, D/8, D/8, modes], for 8 heads of width D/8.
class SpectralMechanism : public InnerMechanism {
 public:
  /// Real and imaginary parts are drawn uniformly from [0, 1 / D^2).
  SpectralMechanism(int64_t hidden_size, int64_t modes);

  // Complex weights follow the real ones of the model around them: kDouble makes them complex128.
  using InnerMechanism::to;
  void to(torch::Device device, torch::Dtype dtype, bool non_blocking) override;
  void to(torch::Dtype dtype, bool non_blocking) override;

 protected:
  static constexpr int64_t kHeads = 8;

  int64_t hidden_size_;
  torch::Tensor weights_;
};

/// Self-attention's place: the query's modes, mixed, become the lowest frequencies of the result
/// (the i-th mode its i-th frequency, which is neuralforecast's). Key and value are not used.
class FourierBlockImpl : public SpectralMechanism {
 public:
  FourierBlockImpl(int64_t hidden_size, const FourierModes& modes);

  at::Tensor forward(AttentionProjections& projections, const at::Tensor& x,
                     const at::Tensor& memory) override;

 private:
  ModeTable analysis_;
  at::Tensor synthesis_;
};

/// Cross-attention's place: tanh(q k^T) k over modes, without conjugation, mixed. The value is not
/// used.
class FourierCrossAttentionImpl : public SpectralMechanism {
 public:
  FourierCrossAttentionImpl(int64_t hidden_size, const FourierModes& query,
                            const FourierModes& key);

  at::Tensor forward(AttentionProjections& projections, const at::Tensor& x,
                     const at::Tensor& memory) override;

 private:
  ModeTable query_analysis_, key_analysis_;
  at::Tensor synthesis_;
};

}  // namespace flash::models
