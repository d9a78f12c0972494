#include <flash_attention/models/gradient_checkpoint.h>
#include <flash_attention/models/itransformer.h>
#include <torch/torch.h>

#include <utility>

#include "checks.h"
#include "layers/common/linear.h"
#include "layers/common/norms.h"
#include "layers/common/transformer_layers.h"
#include "option_visitor.h"

namespace flash::models {
namespace {

// Added to a variance before its square root, so that a constant series is not divided by 0.
constexpr double kVarianceFloor = 1e-5;

void check_options(const ITransformerOptions& options) {
  Checks("iTransformer").heads(options.hidden_size(), "n_heads", options.n_heads());
}

/// futr_exog [B, F, L + h, N] or undefined: its tokens are optional, as in neuralforecast.
void check_futr_exog(const Checks& check, const at::Tensor& exog, int64_t batch,
                     const ITransformerOptions& options) {
  const auto columns = static_cast<int64_t>(options.futr_exog_list().size());
  if (columns == 0) check.absent("futr_exog", exog);
  if (!exog.defined()) return;
  const std::vector<int64_t> expected = {batch, columns, options.input_size() + options.h(),
                                         options.n_series()};
  TORCH_CHECK_VALUE(
      exog.sizes() == expected,
      "iTransformer: expected futr_exog [batch, columns, input_size + h, n_series] = ",
      at::IntArrayRef(expected), ", got ", exog.sizes());
}

}  // namespace

/// One token per series, a linear map of its whole past.
class InvertedEmbeddingImpl : public torch::nn::Cloneable<InvertedEmbeddingImpl> {
 public:
  explicit InvertedEmbeddingImpl(const ITransformerOptions& options) : options_(options) {
    reset();
  }
  void reset() override {
    embedding_ = register_module("value_embedding",
                                 torch::nn::Linear(options_.input_size(), options_.hidden_size()));
  }
  /// series [B, N, input_size] -> [B, N, D]
  torch::Tensor forward(const torch::Tensor& series) {
    return linear(series, embedding_->weight, embedding_->bias);
  }

 private:
  ITransformerOptions options_;
  torch::nn::Linear embedding_{nullptr};
};

class TokenEncoderImpl : public torch::nn::Cloneable<TokenEncoderImpl> {
 public:
  explicit TokenEncoderImpl(const ITransformerOptions& options) : options_(options) { reset(); }

  void reset() override {
    const TransformerLayerOptions layer{.hidden_size = options_.hidden_size(),
                                        .heads = options_.n_heads(),
                                        .inner_size = options_.d_ff(),
                                        .activation = Activation::kGelu,
                                        .dropout = options_.dropout()};
    const auto attention = std::make_shared<FullAttention>(options_.dropout(), options_.config());
    layers_ = register_module("attn_layers", torch::nn::ModuleList());
    for (int64_t i = 0; i < options_.e_layers(); ++i) {
      layers_->push_back(std::make_shared<EncoderLayerImpl>(layer, attention));
    }
    norm_ = register_module(
        "norm", torch::nn::LayerNorm(torch::nn::LayerNormOptions({options_.hidden_size()})));
  }

  /// tokens [B, T, D] -> the first `first` of them, [B, first, D]
  torch::Tensor forward(torch::Tensor tokens, int64_t first) {
    using Tensors = std::vector<at::Tensor>;
    for (size_t i = 0; i < layers_->size(); ++i) {
      const auto layer = layers_->ptr<EncoderLayerImpl>(i);
      tokens =
          options_.gradient_checkpointing()
              ? gradient_checkpoint([layer](const Tensors& in) { return layer->forward(in[0]); },
                                    {tokens}, *layer)
              : layer->forward(tokens);
    }
    return layer_normalized(tokens.slice(1, 0, first), *norm_);
  }

 private:
  ITransformerOptions options_;
  torch::nn::ModuleList layers_{nullptr};
  torch::nn::LayerNorm norm_{nullptr};
};

ITransformerImpl::ITransformerImpl(ITransformerOptions options_)
    : ForecastModelBase(std::move(options_)) {
  check_options(options);
  reset();
}

void ITransformerImpl::reset() {
  const int64_t hidden = options.hidden_size();
  embedding_ = register_module("enc_embedding", std::make_shared<InvertedEmbeddingImpl>(options));
  if (!options.futr_exog_list().empty()) {
    futr_embedding_ = register_module(
        "futr_embedding", torch::nn::Linear(options.input_size() + options.h(), hidden));
  }
  encoder_ = register_module("encoder", std::make_shared<TokenEncoderImpl>(options));
  projector_ = register_module(
      "projector", torch::nn::Linear(hidden, options.h() * options.outputsize_multiplier()));
}

torch::Tensor ITransformerImpl::forward(const WindowsBatch& windows) {
  const Checks check("iTransformer");
  check.series(windows.insample_y, options.input_size(), options.n_series());
  const int64_t batch = windows.insample_y.size(0);
  check_futr_exog(check, windows.futr_exog, batch, options);
  check.absent("hist_exog", windows.hist_exog);
  check.absent("stat_exog", windows.stat_exog);

  torch::Tensor series = windows.insample_y.transpose(1, 2);  // [B, N, L]
  torch::Tensor mean, deviation;                              // [B, N, 1]
  if (options.use_norm()) {
    mean = series.mean(2, /*keepdim=*/true).detach();
    series = series - mean;
    deviation =
        (torch::var(series, {2}, /*unbiased=*/false, /*keepdim=*/true) + kVarianceFloor).sqrt();
    series = series / deviation;
  }
  torch::Tensor tokens = embedding_->forward(series);
  if (windows.futr_exog.defined()) {
    const torch::Tensor of_each_series = windows.futr_exog.permute({0, 3, 1, 2}).flatten(1, 2);
    tokens = torch::cat({tokens, futr_embedding_(of_each_series)}, 1);
  }
  tokens = flash::dropout(tokens, options.dropout(), is_training());
  // [B, N, h M]
  torch::Tensor output =
      linear(encoder_->forward(tokens, options.n_series()), projector_->weight, projector_->bias);
  if (options.use_norm()) output = output * deviation + mean;
  return output.transpose(1, 2).reshape({batch, options.h(), -1});
}

void visit_options(ITransformerOptions& options, OptionVisitor& visitor) {
  visitor.visit_size("h", options.h());
  visitor.visit_size("input_size", options.input_size());
  visitor.visit_size("n_series", options.n_series());
  visitor.visit("futr_exog_list", options.futr_exog_list());
  visitor.visit_size("hidden_size", options.hidden_size());
  visitor.visit_size("n_heads", options.n_heads());
  visitor.visit_size("e_layers", options.e_layers());
  visitor.visit("d_layers", options.d_layers());
  visitor.visit_size("d_ff", options.d_ff());
  visitor.visit("factor", options.factor());
  visitor.visit_probability("dropout", options.dropout());
  visitor.visit("use_norm", options.use_norm());
}

}  // namespace flash::models
