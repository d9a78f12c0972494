#pragma once
// Reversible instance normalisation (Kim et al., "RevIN", ICLR 2022).

#include <torch/nn/cloneable.h>

#include <utility>

namespace flash::models {

/// What one call of `normalize` took out of its windows; `denormalize` puts it back.
struct WindowStatistics {
  torch::Tensor shift;      ///< [B, 1]
  torch::Tensor deviation;  ///< [B, 1]
};

/// Takes level and spread out of each window of one series and puts them back into its forecast.
///
/// The deviation is about the mean even where the last value is subtracted. Gradients pass through
/// the last value, but neither through the mean nor through the deviation.
class RevINImpl : public torch::nn::Cloneable<RevINImpl> {
 public:
  RevINImpl(bool affine, bool subtract_last);

  void reset() override;

  /// windows [B, L] -> normalised [B, L], and the statistics that `denormalize` needs.
  std::pair<torch::Tensor, WindowStatistics> normalize(const torch::Tensor& windows) const;

  /// outputs [B, n] -> [B, n] on the scale of the windows.
  torch::Tensor denormalize(torch::Tensor outputs, const WindowStatistics& statistics) const;

 private:
  bool affine_, subtract_last_;
  torch::Tensor affine_weight_, affine_bias_;
};

}  // namespace flash::models
