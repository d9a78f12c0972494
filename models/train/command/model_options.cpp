#include "train/command/model_options.h"

#include <flash_attention/models/registry.h>

#include <cctype>
#include <limits>
#include <map>
#include <set>
#include <type_traits>

#include "option_visitor.h"
#include "train/command/number_checks.h"

namespace flash::models {
namespace {

struct Text {
  const char* flag;
  const char* text;
};

// The help text of each flag; --help adds the model's default.
constexpr Text kTexts[] = {
    {"--hidden-size", "Width of the layers"},
    {"--n-head", "Attention heads"},
    {"--n-heads", "Attention heads"},
    {"--encoder-layers", "Encoder layers"},
    {"--decoder-layers", "Decoder layers"},
    {"--e-layers", "Encoder layers"},
    {"--d-layers", "Has no effect, as in neuralforecast"},
    {"--d-ff", "Width of the feed-forward layers"},
    {"--linear-hidden-size", "Width of the feed-forward layers"},
    {"--conv-hidden-size", "Width of the feed-forward layers"},
    {"--dropout", "Probability of dropping an activation in training"},
    {"--attn-dropout", "Probability of dropping an attention weight in training"},
    {"--fc-dropout", "Has no effect, as in neuralforecast"},
    {"--head-dropout", "Probability of dropping an output in training"},
    {"--activation", "gelu or relu"},
    {"--grn-activation", "ELU, GELU, LeakyReLU, ReLU, SELU, Sigmoid, Softplus or Tanh"},
    {"--patch-len", "Rows per patch"},
    {"--stride", "Rows between patches; attention runs over about input-size / stride patches"},
    {"--revin", "Normalise each window, and undo that on the forecast"},
    {"--revin-affine", "Give that normalisation a learned factor and shift"},
    {"--revin-subtract-last", "Subtract the window's last value instead of its mean"},
    {"--res-attention", "Add each layer's attention scores to the next one's"},
    {"--batch-normalization", "Normalise before each sublayer instead of after it"},
    {"--learn-pos-embed", "Train the position embedding"},
    {"--use-norm", "Normalise each series of a window, and undo that on the forecast"},
    {"--factor",
     "Number of sampled keys and selected queries (Informer) or of delays (Autoformer), as a "
     "multiple of the logarithm of the length. iTransformer: no effect"},
    {"--distil", "Halve the length after each encoder layer"},
    {"--decoder-input-size-multiplier", "Fraction of the past that the decoder sees"},
    {"--moving-avg-window", "Rows that the trend is averaged over, odd"},
    {"--exclude-insample-y", "Replace the series by zeros"},
    {"--version", "Must be Fourier"},
    {"--modes", "Maximum number of frequencies in a block"},
    {"--mode-select", "random for random frequencies, anything else for the lowest"},
    {"--random-seed", "Seed of the random frequencies only"},
    {"--n-rnn-layers", "Layers of the recurrent encoder"},
    {"--rnn-type", "lstm or gru"},
    {"--one-rnn-initial-state", "Use one initial state for all layers of the recurrent encoder"},
};

// Determined by the data, or (tgt_size) with only one useful value.
const std::set<std::string> kExcludedOptions = {"h", "input_size", "n_series", "tgt_size"};

std::string text_of(const std::string& flag) {
  for (const Text& entry : kTexts) {
    if (flag == entry.flag) return entry.text;
  }
  return "See the model's header";
}

/// A billion layers would fill the memory before any check could fail, and so would the padding for
/// a stride or a window of a billion rows.
CLI::Validator whole_number_of(const std::string& name) {
  if (name.ends_with("layers")) return whole_number(0, 1000);
  if (name == "stride" || name.ends_with("_window")) return whole_number(0, 100'000);
  return whole_number(std::numeric_limits<int64_t>::min());
}

class FlagAdder : public OptionVisitor {
 public:
  FlagAdder(CLI::App& app, ModelOptions& options) : app_(app), options_(options) {}

  void visit(const char* name, int64_t& value) override { add(name, value, std::to_string(value)); }
  void visit(const char* name, double& value) override {
    char text[32];
    std::snprintf(text, sizeof(text), "%g", value);
    add(name, value, text);
  }
  void visit(const char* name, bool& value) override { add(name, value, value ? "true" : "false"); }
  void visit(const char* name, std::string& value) override { add(name, value, value); }
  void visit(const char* name, std::vector<std::string>&) override {
    options_.exogenous.emplace_back(name);
  }
  void visit_extension(const char*, std::map<std::string, std::vector<int64_t>>&) override {}

 private:
  template <class Value>
  void add(const std::string& name, const Value&, const std::string& shown) {
    if (kExcludedOptions.contains(name)) return;
    const std::string flag = flag_of(name);
    CLI::Option* option = app_.add_option_function<Value>(
                                  flag,
                                  [this_options = &options_, name](const Value& value) {
                                    this_options->given[name] = value;
                                  },
                                  text_of(flag))
                              ->default_str(shown)
                              ->group("Model");
    if constexpr (std::is_same_v<Value, int64_t>) {
      option->transform(whole_number_of(name));
    } else if constexpr (std::is_same_v<Value, double>) {
      option->transform(real_number());
    }
  }

  CLI::App& app_;
  ModelOptions& options_;
};

}  // namespace

std::string flag_of(const std::string& option) {
  std::string flag = "--";
  for (size_t i = 0; i < option.size(); ++i) {
    const auto c = static_cast<unsigned char>(option[i]);
    if (i > 0 && std::isupper(c) && std::islower(static_cast<unsigned char>(option[i - 1]))) {
      flag += '-';
    }
    flag += c == '_' ? '-' : static_cast<char>(std::tolower(c));
  }
  return flag;
}

std::string model_description(const std::string& model_class) {
  static const std::map<std::string, std::string> texts = {
      {"TFT", "Train a Temporal Fusion Transformer (arXiv:1912.09363)"},
      {"Informer", "Train an Informer (arXiv:2012.07436)"},
      {"Autoformer", "Train an Autoformer (arXiv:2106.13008)"},
      {"FEDformer", "Train a FEDformer (arXiv:2201.12740)"},
      {"PatchTST", "Train a PatchTST (arXiv:2211.14730)"},
      {"iTransformer", "Train an iTransformer on all series together (arXiv:2310.06625)"}};
  return texts.at(model_class);
}

void add_model_options(CLI::App& app, const std::string& model_class, ModelOptions& options) {
  nlohmann::json needed = {{"h", 14}, {"input_size", 365}};
  if (model_class == "iTransformer") needed["n_series"] = 1;
  FlagAdder adder(app, options);
  make_model(model_class, needed.dump())->visit_options(adder);
}

}  // namespace flash::models
