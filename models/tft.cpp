#include <flash_attention/models/gradient_checkpoint.h>
#include <flash_attention/models/tft.h>
#include <torch/torch.h>

#include <algorithm>
#include <utility>

#include "checks.h"
#include "layers/common/linear.h"
#include "layers/tft/fusion_decoder.h"
#include "layers/tft/static_encoder.h"
#include "layers/tft/temporal_encoder.h"
#include "message_text.h"
#include "option_visitor.h"

namespace flash::models {
namespace {

int64_t number_of(const std::vector<std::string>& names) {
  return static_cast<int64_t>(names.size());
}

/// At least one, see tft.h.
int64_t future_variables(const TFTOptions& options) {
  return std::max<int64_t>(number_of(options.futr_exog_list()), 1);
}

RecurrentCell cell(const TFTOptions& options) {
  return options.rnn_type() == "lstm" ? RecurrentCell::kLstm : RecurrentCell::kGru;
}

void check_options(TFTOptions& options) {
  TORCH_CHECK_VALUE(options.hidden_size() % options.n_head() == 0,
                    "TFT: expected hidden_size to be a multiple of n_head, got hidden_size ",
                    options.hidden_size(), " and n_head ", options.n_head());
  const std::string given = std::exchange(options.rnn_type(), lower_case(options.rnn_type()));
  const std::string& rnn_type = options.rnn_type();
  TORCH_CHECK_VALUE(rnn_type == "lstm" || rnn_type == "gru",
                    "TFT: expected rnn_type \"lstm\" or \"gru\", got \"", excerpt(given), "\"");
}

/// Requires this shape, or an undefined tensor if `columns` is 0.
void check_input(const char* name, const char* list, const torch::Tensor& tensor, int64_t columns,
                 at::IntArrayRef shape) {
  if (columns == 0) {
    TORCH_CHECK_VALUE(!tensor.defined(), "TFT: expected no ", name, ", since ", list,
                      " is empty, got ", tensor.sizes());
    return;
  }
  TORCH_CHECK_VALUE(tensor.defined(), "TFT: expected ", name, " ", shape, " for the ", columns,
                    " variables of ", list, ", got none");
  TORCH_CHECK_VALUE(tensor.sizes() == shape, "TFT: expected ", name, " ", shape, " for the ",
                    columns, " variables of ", list, ", got ", tensor.sizes());
}

void check_windows(const TFTOptions& options, const WindowsBatch& windows) {
  const torch::Tensor& y = windows.insample_y;
  TORCH_CHECK_VALUE(y.defined(), "TFT: expected insample_y [batch, ", options.input_size(),
                    ", 1], got none");
  Checks("TFT").series(y, options.input_size(), /*series=*/1);
  const int64_t batch = y.size(0), past = options.input_size();
  const int64_t futures = number_of(options.futr_exog_list());
  const int64_t histories = number_of(options.hist_exog_list());
  const int64_t statics = number_of(options.stat_exog_list());
  check_input("futr_exog", "futr_exog_list", windows.futr_exog, futures,
              {batch, past + options.h(), futures});
  check_input("hist_exog", "hist_exog_list", windows.hist_exog, histories,
              {batch, past, histories});
  check_input("stat_exog", "stat_exog_list", windows.stat_exog, statics, {batch, statics});
}

}  // namespace

/// The embedding vectors of all scalar variables.
class TFTEmbeddingImpl : public torch::nn::Cloneable<TFTEmbeddingImpl> {
 public:
  explicit TFTEmbeddingImpl(const TFTOptions& options) : options_(options) { reset(); }

  void reset() override {
    add("stat_exog", number_of(options_.stat_exog_list()));
    add("futr_exog", future_variables(options_));
    add("hist_exog", number_of(options_.hist_exog_list()));
    add("tgt", options_.tgt_size());
  }

  ScalarVectors statics() const { return group("stat_exog"); }
  ScalarVectors future() const { return group("futr_exog"); }
  /// In the order of the columns of `past` in forward.
  ScalarVectors past() const {
    std::vector<ScalarVectors> groups = {group("futr_exog"), group("tgt")};
    if (!options_.hist_exog_list().empty()) groups.insert(groups.begin(), group("hist_exog"));
    return join(groups);
  }

 private:
  ScalarVectors group(const std::string& name) const {
    const auto parameters = named_parameters(/*recurse=*/false);
    // Views, whose gradients have the strides of the parameter, as DistributedDataParallel expects
    // even of a dimension of size 1.
    const auto view = [&](const char* which) {
      const torch::Tensor parameter = parameters[name + which];
      return parameter.flatten().view_as(parameter);
    };
    return {.vectors = view("_embedding_vectors"), .biases = view("_embedding_bias")};
  }

  void add(const std::string& name, int64_t variables) {
    if (variables == 0) return;
    torch::Tensor vectors = torch::empty({variables, options_.hidden_size()});
    torch::nn::init::xavier_normal_(vectors);
    register_parameter(name + "_embedding_vectors", vectors);
    register_parameter(name + "_embedding_bias", torch::zeros_like(vectors));
  }

  TFTOptions options_;
};

TFTImpl::TFTImpl(TFTOptions options_) : ForecastModelBase(std::move(options_)) {
  check_options(options);
  reset();
}

void TFTImpl::reset() {
  const GatedActivation activation = gated_activation(options.grn_activation());
  const int64_t hidden = options.hidden_size(), layers = options.n_rnn_layers();
  const int64_t statics = number_of(options.stat_exog_list());
  embedding_ = register_module("embedding", std::make_shared<TFTEmbeddingImpl>(options));
  static_encoder_ = nullptr;
  if (statics > 0) {
    static_encoder_ =
        register_module("static_encoder", std::make_shared<StaticEncoderImpl>(StaticEncoderOptions{
                                              .variables = statics,
                                              .hidden_size = hidden,
                                              .cell = cell(options),
                                              .rnn_layers = layers,
                                              .one_initial_state = options.one_rnn_initial_state(),
                                              .dropout = options.dropout(),
                                              .activation = activation}));
  }
  const int64_t futures = future_variables(options);
  temporal_encoder_ = register_module(
      "temporal_encoder",
      std::make_shared<TemporalEncoderImpl>(TemporalEncoderOptions{
          .past_variables = number_of(options.hist_exog_list()) + futures + options.tgt_size(),
          .future_variables = futures,
          .hidden_size = hidden,
          .cell = cell(options),
          .rnn_layers = layers,
          .dropout = options.dropout(),
          .activation = activation,
          .recompute = options.gradient_checkpointing()}));
  decoder_ =
      register_module("temporal_fusion_decoder",
                      std::make_shared<FusionDecoderImpl>(
                          InterpretableAttentionOptions{.hidden_size = hidden,
                                                        .heads = options.n_head(),
                                                        .attention_dropout = options.attn_dropout(),
                                                        .output_dropout = options.dropout(),
                                                        .config = options.config()},
                          activation));
  output_ =
      register_module("output_adapter", torch::nn::Linear(hidden, options.outputsize_multiplier()));
}

torch::Tensor TFTImpl::forward(const WindowsBatch& windows) {
  check_windows(options, windows);
  const torch::Tensor& y = windows.insample_y;
  const int64_t batch = y.size(0), past_steps = options.input_size(), steps = options.h();
  const int64_t hidden = options.hidden_size();

  StaticContext context;
  if (static_encoder_) {
    context = static_encoder_->forward(windows.stat_exog, embedding_->statics());
  } else {
    // Zeros instead of undefined tensors, so that the weights they are multiplied by get gradients
    // of zero.
    context.selection = context.enrichment = torch::zeros({1, hidden}, y.options());
    context.state.hidden = torch::zeros({options.n_rnn_layers(), batch, hidden}, y.options());
    context.state.cell = context.state.hidden;
  }

  const torch::Tensor known = windows.futr_exog.defined()
                                  ? windows.futr_exog
                                  : y.slice(1, -1).expand({batch, past_steps + steps, 1});
  std::vector<torch::Tensor> columns = {known.slice(1, 0, past_steps),
                                        y.expand({batch, past_steps, options.tgt_size()})};
  if (windows.hist_exog.defined()) columns.insert(columns.begin(), windows.hist_exog);
  // Time is the first dimension from here on: a step of the recurrence is contiguous, and so are
  // the last steps.
  const torch::Tensor past = torch::cat(columns, 2).transpose(0, 1);
  const torch::Tensor future = known.slice(1, past_steps).transpose(0, 1);

  const torch::Tensor features =
      temporal_encoder_->forward(past, future, embedding_->past(), embedding_->future(), context);
  const auto decode = [decoder = decoder_, batch, steps](const std::vector<torch::Tensor>& in) {
    return decoder->forward(in[0], in[1], batch, steps);
  };
  const std::vector<torch::Tensor> encoded = {features, context.enrichment};
  const torch::Tensor decoded = options.gradient_checkpointing()
                                    ? gradient_checkpoint(decode, encoded, *decoder_)
                                    : decode(encoded);
  return linear(decoded, output_->weight, output_->bias)
      .view({steps, batch, options.outputsize_multiplier()})
      .transpose(0, 1);
}

void visit_options(TFTOptions& options, OptionVisitor& visitor) {
  visitor.visit_size("h", options.h());
  visitor.visit_size("input_size", options.input_size());
  visitor.visit_size("tgt_size", options.tgt_size());
  visitor.visit("stat_exog_list", options.stat_exog_list());
  visitor.visit("hist_exog_list", options.hist_exog_list());
  visitor.visit("futr_exog_list", options.futr_exog_list());
  visitor.visit_size("hidden_size", options.hidden_size());
  visitor.visit_size("n_head", options.n_head());
  visitor.visit_probability("attn_dropout", options.attn_dropout());
  visitor.visit("grn_activation", options.grn_activation());
  visitor.visit_size("n_rnn_layers", options.n_rnn_layers());
  visitor.visit("rnn_type", options.rnn_type());
  visitor.visit("one_rnn_initial_state", options.one_rnn_initial_state());
  visitor.visit_probability("dropout", options.dropout());
}

}  // namespace flash::models
