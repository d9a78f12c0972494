#pragma once
// Informer (Zhou et al., "Informer", arXiv:2012.07436) as in neuralforecast 3.3.0: its option
// names, defaults, parameter names, initial weights and numbers. Kept on purpose:
//  - ProbSparse attention measures the queries on keys drawn anew in every forward, in eval mode
//  too:
//    torch::manual_seed before a forward repeats it.
//  - Its output [B, H, L, d] is read as [B, L, H d] without a transposition, which mixes times and
//    heads; so the decoder's self-attention is not causal. Attention weights are never dropped.
// Not kept: with n_head 1 neuralforecast lets every sample use the queries selected by all samples
// of the batch, so that a forecast depends on its neighbours, and counts gradients twice.

#include <flash_attention/export.h>
#include <flash_attention/models/forecast_model.h>
#include <flash_attention/models/model_config.h>
#include <torch/nn/cloneable.h>
#include <torch/nn/pimpl.h>

#include <memory>
#include <string>
#include <vector>

namespace flash::models {

/// Options of `Informer`.
///
///     Informer model(InformerOptions(/*h=*/96, /*input_size=*/336).use_flash_attention(true));
struct InformerOptions {
  InformerOptions(int64_t h, int64_t input_size) : h_(h), input_size_(input_size) {}

  /// Sets the three switches below.
  InformerOptions& config(const ModelConfig& config) {
    return use_flash_attention(config.use_flash_attention)
        .flash_block_size(config.flash_block_size)
        .gradient_checkpointing(config.gradient_checkpointing);
  }

  /// Steps to forecast.
  TORCH_ARG(int64_t, h);
  /// Steps of the past that the model sees.
  TORCH_ARG(int64_t, input_size);
  /// Names of the variables known of past and future. Default: none.
  TORCH_ARG(std::vector<std::string>, futr_exog_list) = {};
  /// Share of the past that the decoder sees, between 0 and 1 exclusive. Default: 0.5.
  TORCH_ARG(double, decoder_input_size_multiplier) = 0.5;
  /// Width of the layers, even. Default: 128.
  TORCH_ARG(int64_t, hidden_size) = 128;
  /// Probability of dropping an activation. Default: 0.05.
  TORCH_ARG(double, dropout) = 0.05;
  /// Queries selected and keys sampled: factor ceil(ln length). Default: 3.
  TORCH_ARG(int64_t, factor) = 3;
  /// Attention heads, each of width hidden_size / n_head (rounded down). Default: 4.
  TORCH_ARG(int64_t, n_head) = 4;
  /// Width of the feed-forward layers. Default: 32.
  TORCH_ARG(int64_t, conv_hidden_size) = 32;
  /// "gelu" or "relu". Default: "gelu".
  TORCH_ARG(std::string, activation) = "gelu";
  /// Default: 2.
  TORCH_ARG(int64_t, encoder_layers) = 2;
  /// Default: 1.
  TORCH_ARG(int64_t, decoder_layers) = 1;
  /// Halve the sequence between encoder layers. Default: true.
  TORCH_ARG(bool, distil) = true;
  /// Numbers per forecast step, as many as the loss needs. Default: 1.
  TORCH_ARG(int64_t, outputsize_multiplier) = 1;
  /// See ModelConfig. Default: false.
  TORCH_ARG(bool, use_flash_attention) = false;
  /// See ModelConfig. Default: 64.
  TORCH_ARG(int64_t, flash_block_size) = 64;
  /// See ModelConfig. Default: false.
  TORCH_ARG(bool, gradient_checkpointing) = false;
};

class DataEmbeddingImpl;
class InformerEncoderImpl;
class InformerDecoderImpl;

class FLASH_API InformerImpl : public torch::nn::Cloneable<InformerImpl>, public ForecastModel {
 public:
  /// Throws c10::ValueError where an option is out of range.
  explicit InformerImpl(InformerOptions options_);

  void reset() override;
  void pretty_print(std::ostream& stream) const override;

  using ForecastModel::forward;
  /// insample_y [B, input_size, 1], and futr_exog [B, input_size + h, F] exactly where
  /// futr_exog_list is not empty -> [B, h, outputsize_multiplier].
  torch::Tensor forward(const WindowsBatch& windows) override;

  std::string model_class() const override { return "Informer"; }
  void visit_options(OptionVisitor& visitor) override;
  int64_t outputsize_multiplier() const override { return options.outputsize_multiplier(); }
  torch::nn::Module& module() override { return *this; }

  InformerOptions options;

 private:
  std::shared_ptr<DataEmbeddingImpl> encoder_embedding_, decoder_embedding_;
  std::shared_ptr<InformerEncoderImpl> encoder_;
  std::shared_ptr<InformerDecoderImpl> decoder_;
};

TORCH_MODULE(Informer);

}  // namespace flash::models
