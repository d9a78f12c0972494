#pragma once
// Reversible instance normalisation (Kim et al., "RevIN", ICLR 2022).

#include <torch/nn/cloneable.h>

#include <utility>

namespace flash::models {

/// The statistics that `normalize` removes and `denormalize` restores.
struct WindowStatistics {
  torch::Tensor shift;      ///< [B, 1]
  torch::Tensor deviation;  ///< [B, 1]
};

/// Normalises each window of one series and undoes that on its forecast.
///
/// The deviation is about the mean even if the last value is subtracted. Gradients flow through the
/// last value, but not through the mean or the deviation.
class RevINImpl : public torch::nn::Cloneable<RevINImpl> {
 public:
  /// Added to a variance before its square root.
  static constexpr double kEpsilon = 1e-5;

  RevINImpl(bool affine, bool subtract_last);

  void reset() override;

  /// windows [B, L] -> normalised [B, L], and the statistics that `denormalize` needs.
  std::pair<torch::Tensor, WindowStatistics> normalize(const torch::Tensor& windows) const;

  /// outputs [B, n] -> [B, n] on the scale of the windows.
  torch::Tensor denormalize(torch::Tensor outputs, const WindowStatistics& statistics) const;

  bool subtracts_last() const { return subtract_last_; }
  /// [1], or undefined.
  const torch::Tensor& affine_weight() const { return affine_weight_; }
  const torch::Tensor& affine_bias() const { return affine_bias_; }

 private:
  bool affine_, subtract_last_;
  torch::Tensor affine_weight_, affine_bias_;
};

}  // namespace flash::models
