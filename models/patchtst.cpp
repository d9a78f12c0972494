#include <flash_attention/dropout.h>
#include <flash_attention/models/patchtst.h>
#include <torch/torch.h>

#include <algorithm>
#include <utility>

#include "checks.h"
#include "layers/common/linear.h"
#include "layers/patchtst/patch_encoder.h"
#include "layers/patchtst/patch_forecast.h"
#include "layers/patchtst/rev_in.h"
#include "message_text.h"
#include "option_visitor.h"

namespace flash::models {
namespace {

/// A longer stride gives the same patches: the second consists of the last value only.
int64_t patch_stride(const PatchTSTOptions& options) {
  return std::min(options.stride(), std::max(options.input_size(), options.patch_len()));
}

int64_t patch_length(const PatchTSTOptions& options) {
  return std::min(options.patch_len(), options.input_size() + patch_stride(options));
}

/// The series is padded with its last value by one stride, so that the patches cover every step.
int64_t patch_count(const PatchTSTOptions& options) {
  const int64_t padded = options.input_size() + patch_stride(options);
  return (padded - patch_length(options)) / patch_stride(options) + 1;
}

void check_options(PatchTSTOptions& options) {
  Checks("PatchTST").heads(options.hidden_size(), "n_heads", options.n_heads());
  const std::string given = std::exchange(options.activation(), lower_case(options.activation()));
  const std::string& activation = options.activation();
  TORCH_CHECK_VALUE(activation == "gelu" || activation == "relu",
                    "PatchTST: expected activation \"gelu\" or \"relu\", got \"", excerpt(given),
                    "\"");
}

void check_absent(const char* name, const at::Tensor& columns) {
  TORCH_CHECK_VALUE(!columns.defined(), "PatchTST: expected no ", name, ", got a tensor ",
                    columns.sizes(),
                    "; the model uses only the series; use TFT for exogenous columns of "
                    "every kind");
}

/// Patches -> tokens -> encoder.
class BackboneImpl : public torch::nn::Cloneable<BackboneImpl> {
 public:
  explicit BackboneImpl(const PatchTSTOptions& options) : options_(options) { reset(); }

  void reset() override {
    embedding_ =
        register_module("W_P", torch::nn::Linear(patch_length(options_), options_.hidden_size()));
    torch::Tensor position = torch::empty({patch_count(options_), options_.hidden_size()});
    torch::nn::init::uniform_(position, -0.02, 0.02);
    position_ = register_parameter("W_pos", position, options_.learn_pos_embed());
    encoder_ = register_module("encoder", std::make_shared<PatchEncoderImpl>(options_));
  }

  /// patches [B, P, patch_len] -> [B, P, hidden_size]
  torch::Tensor forward(const torch::Tensor& patches) {
    return encoder_->forward(
        flash::dropout(linear(patches, embedding_->weight, embedding_->bias) + position_,
                       options_.dropout(), is_training()));
  }

  LinearWeights embedding() const { return {embedding_->weight, embedding_->bias}; }
  const torch::Tensor& position() const { return position_; }
  const PatchEncoderImpl& encoder() const { return *encoder_; }

 private:
  PatchTSTOptions options_;
  torch::nn::Linear embedding_{nullptr};
  torch::Tensor position_;
  std::shared_ptr<PatchEncoderImpl> encoder_;
};

/// One linear layer from all patches to the forecast.
class HeadImpl : public torch::nn::Cloneable<HeadImpl> {
 public:
  explicit HeadImpl(const PatchTSTOptions& options) : options_(options) { reset(); }

  void reset() override {
    linear_ = register_module("linear",
                              torch::nn::Linear(options_.hidden_size() * patch_count(options_),
                                                options_.h() * options_.outputsize_multiplier()));
  }

  /// encoded [B, P, hidden_size] -> [B, h * outputsize_multiplier]
  torch::Tensor forward(const torch::Tensor& encoded) {
    const torch::Tensor features = encoded.transpose(1, 2).flatten(1);
    return flash::dropout(linear(features, linear_->weight, linear_->bias), options_.head_dropout(),
                          is_training());
  }

  LinearWeights weights() const { return {linear_->weight, linear_->bias}; }

 private:
  PatchTSTOptions options_;
  torch::nn::Linear linear_{nullptr};
};

}  // namespace

/// neuralforecast keeps the network in a member `model`, hence the prefix of every parameter name.
class PatchTSTNetworkImpl : public torch::nn::Cloneable<PatchTSTNetworkImpl> {
 public:
  explicit PatchTSTNetworkImpl(const PatchTSTOptions& options) : options_(options) { reset(); }

  void reset() override {
    if (options_.revin()) {
      rev_in_ = register_module(
          "revin_layer",
          std::make_shared<RevINImpl>(options_.revin_affine(), options_.revin_subtract_last()));
    }
    backbone_ = register_module("backbone", std::make_shared<BackboneImpl>(options_));
    head_ = register_module("head", std::make_shared<HeadImpl>(options_));
  }

  /// windows [B, input_size] -> [B, h * outputsize_multiplier]
  torch::Tensor forward(torch::Tensor windows) {
    if (!is_training() && !torch::GradMode::is_enabled() && options_.use_flash_attention()) {
      const PatchNetwork all = tensors();
      if (fits_forecast(all, windows)) return patch_forecast(all, windows);
    }
    WindowStatistics statistics;
    if (rev_in_) std::tie(windows, statistics) = rev_in_->normalize(windows);
    const int64_t stride = patch_stride(options_);
    const torch::Tensor padded =
        torch::cat({windows, windows.slice(1, -1).expand({-1, stride})}, 1);
    const torch::Tensor patches = padded.unfold(1, patch_length(options_), stride);
    const torch::Tensor outputs = head_->forward(backbone_->forward(patches));
    return rev_in_ ? rev_in_->denormalize(outputs, statistics) : outputs;
  }

 private:
  PatchNetwork tensors() const {
    return {.embedding = backbone_->embedding(),
            .position = backbone_->position(),
            .layers = backbone_->encoder().layers(),
            .head = head_->weights(),
            .heads = options_.n_heads(),
            .stride = patch_stride(options_),
            .activation = options_.activation() == "relu" ? kernels::GatedActivation::kRelu
                                                          : kernels::GatedActivation::kGelu,
            .adds_scores = options_.res_attention(),
            .norm_first = options_.batch_normalization(),
            .normalizes = rev_in_ != nullptr,
            .subtracts_last = rev_in_ && rev_in_->subtracts_last(),
            .affine_weight = rev_in_ ? rev_in_->affine_weight() : torch::Tensor(),
            .affine_bias = rev_in_ ? rev_in_->affine_bias() : torch::Tensor()};
  }

  PatchTSTOptions options_;
  std::shared_ptr<RevINImpl> rev_in_;
  std::shared_ptr<BackboneImpl> backbone_;
  std::shared_ptr<HeadImpl> head_;
};

PatchTSTImpl::PatchTSTImpl(PatchTSTOptions options_) : ForecastModelBase(std::move(options_)) {
  check_options(options);
  reset();
}

void PatchTSTImpl::reset() {
  network_ = register_module("model", std::make_shared<PatchTSTNetworkImpl>(options));
}

at::Tensor PatchTSTImpl::forward(const WindowsBatch& windows) {
  const at::Tensor& series = windows.insample_y;
  Checks("PatchTST").series(series, options.input_size(), /*series=*/1);
  check_absent("futr_exog", windows.futr_exog);
  check_absent("hist_exog", windows.hist_exog);
  check_absent("stat_exog", windows.stat_exog);
  return network_->forward(series.squeeze(2))
      .view({series.size(0), options.h(), options.outputsize_multiplier()});
}

void visit_options(PatchTSTOptions& options, OptionVisitor& visitor) {
  visitor.visit_size("h", options.h());
  visitor.visit_size("input_size", options.input_size());
  visitor.visit_size("encoder_layers", options.encoder_layers());
  visitor.visit_size("n_heads", options.n_heads());
  visitor.visit_size("hidden_size", options.hidden_size());
  visitor.visit_size("linear_hidden_size", options.linear_hidden_size());
  visitor.visit_probability("dropout", options.dropout());
  visitor.visit_probability("fc_dropout", options.fc_dropout());
  visitor.visit_probability("head_dropout", options.head_dropout());
  visitor.visit_probability("attn_dropout", options.attn_dropout());
  visitor.visit_size("patch_len", options.patch_len());
  visitor.visit_size("stride", options.stride());
  visitor.visit("revin", options.revin());
  visitor.visit("revin_affine", options.revin_affine());
  visitor.visit("revin_subtract_last", options.revin_subtract_last());
  visitor.visit("activation", options.activation());
  visitor.visit("res_attention", options.res_attention());
  visitor.visit("batch_normalization", options.batch_normalization());
  visitor.visit("learn_pos_embed", options.learn_pos_embed());
}

}  // namespace flash::models
