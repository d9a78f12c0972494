#include <flash_attention/models/autoformer.h>
#include <torch/torch.h>

#include <utility>

#include "layers/decomposition/auto_correlation.h"
#include "layers/decomposition/decomposition_options.h"
#include "layers/decomposition/decomposition_transformer.h"
#include "option_visitor.h"

namespace flash::models {
namespace {

void check_delays(int64_t factor, int64_t length) {
  const int64_t delays = delay_count(factor, length);
  const int64_t choice = length - length % 2;  // an odd length has one delay fewer
  TORCH_CHECK_VALUE(
      delays >= 1 && delays <= choice,
      "Autoformer: expected a factor that makes int(factor * ln(length)) at least 1 and at most ",
      choice, " delays of a sequence of ", length, " steps, got factor ", factor, ", which makes ",
      delays);
}

void check_options(const AutoformerOptions& options) {
  const DecompositionTransformerOptions network = decomposition_options(options);
  if (network.attention == AttentionChoice::kNative) {
    Checks("Autoformer").size("factor", options.factor());
    check_delays(options.factor(), network.input_size);
    check_delays(options.factor(), network.label_length + network.h);
  }
}

}  // namespace

AutoformerImpl::AutoformerImpl(AutoformerOptions options_)
    : ForecastModelBase(std::move(options_)) {
  check_options(options);
  reset();
}

void AutoformerImpl::reset() {
  network_ = std::make_shared<DecompositionTransformer>();
  network_->register_in(*this, decomposition_options(options), [this] {
    // They have no weights; they differ only in the projections of their layers.
    const auto make = [this] { return std::make_shared<AutoCorrelation>(options.factor()); };
    return SharedMechanisms{make(), make(), make()};
  });
}

std::shared_ptr<torch::nn::Module> AutoformerImpl::clone(
    const std::optional<torch::Device>& device) const {
  auto copy = std::make_shared<AutoformerImpl>(options);
  copy_parameters(*this, *copy, device);
  return copy;
}

at::Tensor AutoformerImpl::forward(const WindowsBatch& windows) {
  check_windows(windows, options);
  const at::Tensor& series = windows.insample_y;
  return network_->forward(options.exclude_insample_y() ? at::zeros_like(series) : series,
                           windows.futr_exog);
}

void visit_options(AutoformerOptions& options, OptionVisitor& visitor) {
  visitor.visit_size("h", options.h());
  visitor.visit_size("input_size", options.input_size());
  visitor.visit("futr_exog_list", options.futr_exog_list());
  visitor.visit("exclude_insample_y", options.exclude_insample_y());
  visitor.visit("decoder_input_size_multiplier", options.decoder_input_size_multiplier());
  visitor.visit_size("hidden_size", options.hidden_size());
  visitor.visit_probability("dropout", options.dropout());
  visitor.visit("factor", options.factor());
  visitor.visit_size("n_head", options.n_head());
  visitor.visit_size("conv_hidden_size", options.conv_hidden_size());
  visitor.visit("activation", options.activation());
  visitor.visit_size("encoder_layers", options.encoder_layers());
  visitor.visit_size("decoder_layers", options.decoder_layers());
  visitor.visit_size("MovingAvg_window", options.MovingAvg_window());
}

}  // namespace flash::models
