#include "model_size.h"

#include <c10/util/Exception.h>
#include <flash_attention/models/autoformer.h>
#include <flash_attention/models/fedformer.h>
#include <flash_attention/models/informer.h>
#include <flash_attention/models/itransformer.h>
#include <flash_attention/models/patchtst.h>
#include <flash_attention/models/tft.h>

#include <algorithm>
#include <cmath>

#include "available_memory.h"
#include "layers/common/data_embedding.h"
#include "layers/decomposition/fourier_block.h"
#include "message_text.h"

namespace flash::models {
namespace {

constexpr double kFloat = 4, kDouble = 8, kComplexFloat = 8, kInt64 = 8;  // bytes

ModelSize operator+(const ModelSize& a, const ModelSize& b) {
  return {
      .bytes = a.bytes + b.bytes, .tensors = a.tensors + b.tensors, .tables = a.tables + b.tables};
}

ModelSize& operator+=(ModelSize& a, const ModelSize& b) { return a = a + b; }

ModelSize operator*(double count, const ModelSize& one) {
  return {.bytes = count * one.bytes, .tensors = count * one.tensors, .tables = count * one.tables};
}

double at_least_0(int64_t value) { return static_cast<double>(std::max<int64_t>(value, 0)); }

double count(const std::vector<std::string>& names) { return static_cast<double>(names.size()); }

// --- layers, named like those of torch::nn or of this project

ModelSize tensor(double elements) { return {.bytes = kFloat * elements, .tensors = 1}; }

ModelSize linear(double in, double out, bool bias = true) {
  return tensor(in * out) + (bias ? tensor(out) : ModelSize{});
}

ModelSize layer_norm(double width) { return 2 * tensor(width); }

ModelSize batch_norm(double width) {
  return 4 * tensor(width) + ModelSize{.bytes = kInt64, .tensors = 1};
}

/// query, key, value and output.
ModelSize projections(double hidden, double heads) {
  const double inner = heads > 0 ? heads * std::floor(hidden / heads) : 0;
  return 3 * linear(hidden, inner) + linear(inner, hidden);
}

ModelSize feed_forward(double hidden, double inner, bool bias) {
  return linear(hidden, inner, bias) + linear(inner, hidden, bias);
}

ModelSize data_embedding(double hidden, double columns, bool has_position) {
  ModelSize size = tensor(3 * hidden);
  if (has_position) {
    size += tensor(PositionalEmbeddingImpl::kMaxLength * hidden);
    size.tables += 3 * size.bytes;  // angles, sines, cosines
  }
  if (columns > 0) size += tensor(columns * hidden);
  return size;
}

ModelSize transformer_layer(double hidden, double heads, double inner, double attentions) {
  return attentions * projections(hidden, heads) + feed_forward(hidden, inner, /*bias=*/true) +
         (attentions + 1) * layer_norm(hidden);
}

// --- Autoformer, FEDformer

template <class Options>
ModelSize decomposition_transformer(const Options& options) {
  const double hidden = at_least_0(options.hidden_size());
  const double outputs = at_least_0(options.outputsize_multiplier());
  const ModelSize attention = projections(hidden, at_least_0(options.n_head()));
  const ModelSize inner =
      feed_forward(hidden, at_least_0(options.conv_hidden_size()), /*bias=*/false);
  return 2 * data_embedding(hidden, count(options.futr_exog_list()), /*has_position=*/false) +
         at_least_0(options.encoder_layers()) * (attention + inner) +
         at_least_0(options.decoder_layers()) *
             (2 * attention + inner + tensor(3 * hidden * outputs)) +
         2 * layer_norm(hidden) + linear(hidden, outputs);
}

/// With `modes` frequencies and tables for a series of at most `length` steps.
ModelSize fourier_block(double hidden, double heads, double modes, double length) {
  const double width = heads > 0 ? std::floor(hidden / heads) : 0;
  const double weights = kComplexFloat * heads * width * width * modes;
  const double table = kDouble * 2 * modes * (length / 2 + 1);
  // Random weights are drawn into one tensor and scaled into another.
  return {.bytes = weights, .tensors = 1, .tables = weights + 4 * table};
}

// --- TFT

ModelSize gated_linear_unit(double in, double out) { return linear(in, 2 * out); }

/// Without output_size.
ModelSize residual_network(double hidden, bool context) {
  return layer_norm(hidden) + 2 * linear(hidden, hidden) + gated_linear_unit(hidden, hidden) +
         (context ? linear(hidden, hidden, /*bias=*/false) : ModelSize{});
}

ModelSize variable_selection(double variables, double hidden) {
  const double in = variables * hidden;
  const ModelSize joint = (variables == 1 ? ModelSize{} : layer_norm(variables)) +
                          linear(in, hidden) + linear(hidden, hidden, /*bias=*/false) +
                          linear(hidden, hidden) + gated_linear_unit(hidden, variables) +
                          linear(in, variables);
  return joint + variables * residual_network(hidden, /*context=*/false);
}

ModelSize recurrent(double hidden, bool lstm, double layers) {
  const double gates = (lstm ? 4 : 3) * hidden;
  return layers * 2 * (tensor(gates * hidden) + tensor(gates));
}

}  // namespace

ModelSize model_size(const AutoformerOptions& options) {
  return decomposition_transformer(options);
}

ModelSize model_size(const FEDformerOptions& options) {
  const double hidden = at_least_0(options.hidden_size()), modes = at_least_0(options.modes());
  const double past = at_least_0(options.input_size()), steps = at_least_0(options.h());
  const auto block = [&](const char* name, double length) {
    const auto given = options.fourier_index().find(name);
    const double chosen = given != options.fourier_index().end()
                              ? static_cast<double>(given->second.size())
                              : std::min(modes, std::floor(length / 2));
    return fourier_block(hidden, at_least_0(options.n_head()), chosen, past + steps);
  };
  const double half = std::floor(past / 2) + steps;
  const ModelSize keys{.tables = block("dec_cross_kv", past).tables};
  // Each of the four blocks lists all frequencies before it draws some.
  const ModelSize lists{.tables = 4 * kInt64 * (past + steps)};
  return decomposition_transformer(options) + block("enc_self", past) + block("dec_self", half) +
         block("dec_cross_q", half) + keys + lists;
}

ModelSize model_size(const InformerOptions& options) {
  const double hidden = at_least_0(options.hidden_size()), heads = at_least_0(options.n_head());
  const double inner = at_least_0(options.conv_hidden_size());
  const double layers = at_least_0(options.encoder_layers());
  const ModelSize distilling = tensor(3 * hidden * hidden) + tensor(hidden) + batch_norm(hidden);
  return 2 * data_embedding(hidden, count(options.futr_exog_list()), /*has_position=*/true) +
         layers * transformer_layer(hidden, heads, inner, 1) +
         (options.distil() ? std::max(layers - 1, 0.0) : 0.0) * distilling +
         at_least_0(options.decoder_layers()) * transformer_layer(hidden, heads, inner, 2) +
         2 * layer_norm(hidden) + linear(hidden, at_least_0(options.outputsize_multiplier()));
}

ModelSize model_size(const ITransformerOptions& options) {
  const double hidden = at_least_0(options.hidden_size()), past = at_least_0(options.input_size());
  const double steps = at_least_0(options.h());
  return linear(past, hidden) +
         (options.futr_exog_list().empty() ? ModelSize{} : linear(past + steps, hidden)) +
         at_least_0(options.e_layers()) * transformer_layer(hidden, at_least_0(options.n_heads()),
                                                            at_least_0(options.d_ff()), 1) +
         layer_norm(hidden) + linear(hidden, steps * at_least_0(options.outputsize_multiplier()));
}

ModelSize model_size(const PatchTSTOptions& options) {
  const double hidden = at_least_0(options.hidden_size()), stride = at_least_0(options.stride());
  const double padded = at_least_0(options.input_size()) + stride;
  const double patch = std::min(at_least_0(options.patch_len()), padded);
  const double patches = stride > 0 ? std::floor((padded - patch) / stride) + 1 : 0;
  const ModelSize layer =
      projections(hidden, at_least_0(options.n_heads())) + tensor(1) +
      feed_forward(hidden, at_least_0(options.linear_hidden_size()), /*bias=*/true) +
      2 * batch_norm(hidden);
  return (options.revin() && options.revin_affine() ? 2 * tensor(1) : ModelSize{}) +
         linear(patch, hidden) + tensor(patches * hidden) +
         at_least_0(options.encoder_layers()) * layer +
         linear(hidden * patches,
                at_least_0(options.h()) * at_least_0(options.outputsize_multiplier()));
}

ModelSize model_size(const TFTOptions& options) {
  const double hidden = at_least_0(options.hidden_size()), heads = at_least_0(options.n_head());
  const double layers = at_least_0(options.n_rnn_layers());
  const double statics = count(options.stat_exog_list());
  const double future = std::max(count(options.futr_exog_list()), 1.0);  // see tft.h
  const double histories = count(options.hist_exog_list()),
               targets = at_least_0(options.tgt_size());
  const bool lstm = lower_case(options.rnn_type()) == "lstm";
  ModelSize size;
  for (const double variables : {statics, future, histories, targets}) {
    if (variables > 0) size += 2 * tensor(variables * hidden);
  }
  if (statics > 0) {
    const double states = (lstm ? 2 : 1) * (options.one_rnn_initial_state() ? 1.0 : layers);
    size += variable_selection(statics, hidden) +
            (2 + states) * residual_network(hidden, /*context=*/false);
  }
  size += variable_selection(histories + future + targets, hidden) +
          variable_selection(future, hidden) + 2 * recurrent(hidden, lstm, layers);
  const ModelSize gated_norm = gated_linear_unit(hidden, hidden) + layer_norm(hidden);
  const double head = heads > 0 ? std::floor(hidden / heads) : 0;
  return size + 3 * gated_norm + residual_network(hidden, /*context=*/true) +
         residual_network(hidden, /*context=*/false) +
         linear(hidden, (2 * heads + 1) * head, /*bias=*/false) +
         linear(head, hidden, /*bias=*/false) +
         linear(hidden, at_least_0(options.outputsize_multiplier()));
}

SizeLimit limit_of_machine() {
  return {.bytes = available_memory() / 2,
          .reason =
              "half of the memory that this machine has available, since a gradient needs as "
              "much again"};
}

SizeLimit limit_of_file(const TensorMap& tensors) {
  constexpr double kFactor = 4, kConstant = 256e6;
  double bytes = 0;
  for (const auto& entry : tensors) bytes += static_cast<double>(entry.second.nbytes());
  const SizeLimit machine = limit_of_machine();
  const double most = kFactor * bytes + kConstant;
  if (most > machine.bytes) return machine;
  return {.bytes = most,
          .reason = "which is ample for the " + in_gigabytes(bytes) + " of tensors in the file"};
}

void check_size(const std::string& context, const ModelSize& size, const SizeLimit& limit) {
  TORCH_CHECK_VALUE(size.memory() <= limit.bytes, context,
                    ": expected options of a model of at most ", in_gigabytes(limit.bytes), ", ",
                    limit.reason, ", got options of a model of ", in_gigabytes(size.memory()),
                    " in ", size.tensors, " tensors");
}

}  // namespace flash::models
