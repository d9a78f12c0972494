#pragma once
// What AutoformerOptions and FEDformerOptions have in common: checks, and the sizes that follow.

#include <c10/util/Exception.h>
#include <flash_attention/models/windows_batch.h>

#include <string>

#include "checks.h"
#include "layers/common/feed_forward.h"
#include "layers/decomposition/decomposition_transformer.h"

namespace flash::models {

/// What `attention` and `use_flash_attention` say together, or c10::ValueError.
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

inline const char* name_of(AttentionChoice choice) {
  switch (choice) {
    case AttentionChoice::kStandard:
      return "standard";
    case AttentionChoice::kFlash:
      return "flash";
    default:
      return "native";
  }
}

/// Throws c10::ValueError, beginning with `model`, where an option is out of range.
template <class Options>
DecompositionTransformerOptions decomposition_options(const std::string& model, Options options) {
  const Checks check(model);
  check.size("h", options.h());
  check.size("input_size", options.input_size());
  check.size("hidden_size", options.hidden_size());
  check.size("n_head", options.n_head());
  check.size("conv_hidden_size", options.conv_hidden_size());
  check.size("encoder_layers", options.encoder_layers());
  check.size("decoder_layers", options.decoder_layers());
  check.size("MovingAvg_window", options.MovingAvg_window());
  check.size("outputsize_multiplier", options.outputsize_multiplier());
  check.positive("flash_block_size", options.flash_block_size());
  check.probability("dropout", options.dropout());
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
          .config = {.use_flash_attention = options.use_flash_attention(),
                     .flash_block_size = options.flash_block_size(),
                     .gradient_checkpointing = options.gradient_checkpointing()}};
}

/// Throws c10::ValueError, beginning with `model`, unless the batch is what the options say.
template <class Options>
void check_windows(const std::string& model, const WindowsBatch& windows, Options options) {
  const Checks check(model);
  check.series(windows.insample_y, options.input_size(), 1);
  check.futr_exog(windows.futr_exog, windows.insample_y.size(0), options.input_size() + options.h(),
                  options.futr_exog_list());
  check.absent("hist_exog", windows.hist_exog);
  check.absent("stat_exog", windows.stat_exog);
}

}  // namespace flash::models
