#pragma once
// From AutoformerOptions and FEDformerOptions to the network that they share.

#include <c10/util/Exception.h>
#include <flash_attention/models/windows_batch.h>

#include <string>

#include "checks.h"
#include "layers/common/feed_forward.h"
#include "layers/decomposition/decomposition_transformer.h"

namespace flash::models {

/// The choice that `attention` and `use_flash_attention` make together. Throws c10::ValueError if
/// they contradict each other.
inline AttentionChoice attention_choice(const std::string& model, const std::string& attention,
                                        bool use_flash_attention) {
  TORCH_CHECK_VALUE(attention == "native" || attention == "standard" || attention == "flash", model,
                    ": expected attention \"native\", \"standard\" or \"flash\", got \"", attention,
                    "\"");
  TORCH_CHECK_VALUE(!use_flash_attention || attention != "standard", model,
                    ": expected one choice of attention, got \"standard\" and use_flash_attention; "
                    "set one of them");
  if (use_flash_attention || attention == "flash") return AttentionChoice::kFlash;
  return attention == "standard" ? AttentionChoice::kStandard : AttentionChoice::kNative;
}

/// Throws c10::ValueError for options that contradict each other.
template <class Options>
DecompositionTransformerOptions decomposition_options(const Options& options) {
  const std::string model = Options::kModelClass;
  const Checks check(model);
  check.heads(options.hidden_size(), "n_head", options.n_head());
  TORCH_CHECK_VALUE(options.MovingAvg_window() % 2 == 1, model,
                    ": expected an odd MovingAvg_window, which has a middle, got ",
                    options.MovingAvg_window());
  return {.h = options.h(),
          .input_size = options.input_size(),
          .label_length =
              check.label_length(options.input_size(), options.decoder_input_size_multiplier()),
          .exog_size = static_cast<int64_t>(options.futr_exog_list().size()),
          .outputs = options.outputsize_multiplier(),
          .hidden_size = options.hidden_size(),
          .heads = options.n_head(),
          .inner_size = options.conv_hidden_size(),
          .activation = activation_named(model, options.activation()),
          .dropout = options.dropout(),
          .encoder_layers = options.encoder_layers(),
          .decoder_layers = options.decoder_layers(),
          .window = options.MovingAvg_window(),
          .attention = attention_choice(model, options.attention(), options.use_flash_attention()),
          .config = options.config()};
}

/// Throws c10::ValueError unless the batch has the shapes that the options give.
template <class Options>
void check_windows(const WindowsBatch& windows, const Options& options) {
  const Checks check(Options::kModelClass);
  check.series(windows.insample_y, options.input_size(), 1);
  check.futr_exog(windows.futr_exog, windows.insample_y.size(0), options.input_size() + options.h(),
                  options.futr_exog_list());
  check.absent("hist_exog", windows.hist_exog);
  check.absent("stat_exog", windows.stat_exog);
}

}  // namespace flash::models
