#pragma once
// FEDformer's Fourier blocks (Zhou et al., "FEDformer", arXiv:2201.12740, sections 3.2 and 3.3): a
// few frequencies, mixed by learned complex weights. Because they are few, they are computed by a
// product with a table of cosines and sines instead of a Fourier transform.
//
// Reproduced from neuralforecast, because results depend on it: the result, [B, heads, channels, T]
// in memory, is read as [B, T, heads * channels] without a transposition.

#include "layers/common/attention_mechanism.h"
#include "layers/decomposition/mode_transform.h"

namespace flash::models {

/// Cosines and sines of n modes (frequencies).
struct ModeTable {
  at::Tensor rows;   ///< from analysis_table
  int64_t constant;  ///< index of the mode with frequency 0, or -1
};

/// A mechanism with complex weights `weights1` [8, D/8, D/8, modes], for 8 heads of width D/8.
class SpectralMechanism : public AttentionMechanism {
 public:
  /// Real and imaginary parts are drawn uniformly from [0, 1 / D^2).
  SpectralMechanism(int64_t hidden_size, int64_t modes);

  // A real dtype converts to the complex one of the same precision: kDouble to complex128.
  using AttentionMechanism::to;
  void to(torch::Device device, torch::Dtype dtype, bool non_blocking) override;
  void to(torch::Dtype dtype, bool non_blocking) override;

 protected:
  static constexpr int64_t kHeads = 8;

  int64_t hidden_size_;
  torch::Tensor weights_;
};

/// For self-attention: the query's modes, mixed, become the lowest frequencies of the result (mode
/// i becomes frequency i, as in neuralforecast). Key and value are not used.
class FourierBlock : public SpectralMechanism {
 public:
  FourierBlock(int64_t hidden_size, const FourierModes& modes);

  at::Tensor forward(const AttentionProjections& projections, const at::Tensor& x,
                     const at::Tensor& memory, bool training) const override;

 private:
  ModeTable analysis_;
  at::Tensor synthesis_;
};

/// For cross-attention: tanh(q k^T) k over modes, without conjugation, then mixed. The value is not
/// used.
class FourierCrossAttention : public SpectralMechanism {
 public:
  FourierCrossAttention(int64_t hidden_size, const FourierModes& query, const FourierModes& key);

  at::Tensor forward(const AttentionProjections& projections, const at::Tensor& x,
                     const at::Tensor& memory, bool training) const override;

 private:
  ModeTable query_analysis_, key_analysis_;
  at::Tensor synthesis_;
};

}  // namespace flash::models
