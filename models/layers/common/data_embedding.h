#pragma once
// The embedding of Informer, Autoformer and FEDformer: one token per step of a window.

#include <torch/nn/cloneable.h>
#include <torch/nn/modules/conv.h>
#include <torch/nn/modules/linear.h>

namespace flash::models {

/// A circular convolution of width 3 over one series, under neuralforecast's name
/// `tokenConv.weight` [D, 1, 3].
class TokenEmbeddingImpl : public torch::nn::Cloneable<TokenEmbeddingImpl> {
 public:
  explicit TokenEmbeddingImpl(int64_t hidden_size) : hidden_size_(hidden_size) { reset(); }
  void reset() override;
  /// [D, 3]
  torch::Tensor weight() const { return convolution_->weight.squeeze(1); }

 private:
  int64_t hidden_size_;
  torch::nn::Conv1d convolution_{nullptr};
};

/// Sines and cosines of the position (Vaswani et al., arXiv:1706.03762, section 3.5), as the buffer
/// `pe` [1, 5000, D].
class PositionalEmbeddingImpl : public torch::nn::Cloneable<PositionalEmbeddingImpl> {
 public:
  static constexpr int64_t kMaxLength = 5000;

  explicit PositionalEmbeddingImpl(int64_t hidden_size) : hidden_size_(hidden_size) { reset(); }
  void reset() override;
  /// [length, D]
  torch::Tensor rows(int64_t length) const { return table_[0].slice(0, 0, length); }

 private:
  int64_t hidden_size_;
  torch::Tensor table_;
};

/// A linear map of the exogenous columns without bias, with the parameter `embed.weight` [D, F].
class TimeFeatureEmbeddingImpl : public torch::nn::Cloneable<TimeFeatureEmbeddingImpl> {
 public:
  TimeFeatureEmbeddingImpl(int64_t columns, int64_t hidden_size)
      : columns_(columns), hidden_size_(hidden_size) {
    reset();
  }
  void reset() override;
  /// [D, F]
  torch::Tensor weight() const { return embed_->weight; }

 private:
  int64_t columns_, hidden_size_;
  torch::nn::Linear embed_{nullptr};
};

/// Sizes and switches of `DataEmbeddingImpl`.
struct DataEmbeddingOptions {
  int64_t hidden_size;
  int64_t exog_size;  ///< exogenous columns F, or 0
  bool has_position;  ///< true for Informer only
  double dropout;
};

/// dropout(token + position + temporal embedding). Token and temporal embedding are one matrix
/// product: its input is each step with its two neighbours and its exogenous columns.
class DataEmbeddingImpl : public torch::nn::Cloneable<DataEmbeddingImpl> {
 public:
  explicit DataEmbeddingImpl(const DataEmbeddingOptions& options) : options_(options) { reset(); }

  void reset() override;

  /// series [B, T, 1], exog [B, T, F] (undefined where F is 0) -> [B, T, D]
  torch::Tensor forward(const torch::Tensor& series, const torch::Tensor& exog);

 private:
  DataEmbeddingOptions options_;
  std::shared_ptr<TokenEmbeddingImpl> value_;
  std::shared_ptr<PositionalEmbeddingImpl> position_;
  std::shared_ptr<TimeFeatureEmbeddingImpl> temporal_;
};

}  // namespace flash::models
