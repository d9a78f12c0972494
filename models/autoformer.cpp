#include <flash_attention/models/autoformer.h>
#include <torch/torch.h>

#include <utility>

#include "layers/decomposition/auto_correlation.h"
#include "layers/decomposition/decomposition_options.h"
#include "layers/decomposition/decomposition_transformer.h"
#include "option_visitor.h"

namespace flash::models {
namespace {

constexpr char kAutoformer[] = "Autoformer";

void check_delays(int64_t factor, int64_t length) {
  const int64_t delays = delay_count(factor, length);
  const int64_t choice = length - length % 2;  // an odd length has one delay less
  TORCH_CHECK_VALUE(
      delays >= 1 && delays <= choice, kAutoformer,
      ": expected a factor that makes int(factor * ln(length)) at least 1 and at most ", choice,
      " delays of a sequence of ", length, " steps, got factor ", factor, ", which makes ", delays);
}

AutoformerOptions checked(AutoformerOptions options) {
  const DecompositionTransformerOptions network = decomposition_options(kAutoformer, options);
  if (network.attention == AttentionChoice::kNative) {
    Checks(kAutoformer).size("factor", options.factor());
    check_delays(options.factor(), network.input_size);
    check_delays(options.factor(), network.label_length + network.h);
  }
  return options;
}

}  // namespace

AutoformerImpl::AutoformerImpl(AutoformerOptions options_) : options(checked(std::move(options_))) {
  reset();
}

void AutoformerImpl::reset() {
  network_ = std::make_shared<DecompositionTransformer>();
  network_->register_in(*this, decomposition_options(kAutoformer, options), [this] {
    // They have no weights: what tells them apart are the projections around them.
    const auto make = [this] { return std::make_shared<AutoCorrelationImpl>(options.factor()); };
    return InnerMechanisms{make(), make(), make()};
  });
}

std::shared_ptr<torch::nn::Module> AutoformerImpl::clone(
    const std::optional<torch::Device>& device) const {
  auto copy = std::make_shared<AutoformerImpl>(options);
  copy_parameters(*this, *copy, device);
  return copy;
}

void AutoformerImpl::pretty_print(std::ostream& stream) const {
  stream << "flash::models::Autoformer(h=" << options.h() << ", input_size=" << options.input_size()
         << ", encoder_layers=" << options.encoder_layers()
         << ", decoder_layers=" << options.decoder_layers() << ", n_head=" << options.n_head()
         << ", hidden_size=" << options.hidden_size() << ", attention="
         << name_of(
                attention_choice(kAutoformer, options.attention(), options.use_flash_attention()))
         << ")";
}

at::Tensor AutoformerImpl::forward(const WindowsBatch& windows) {
  check_windows(kAutoformer, windows, options);
  const at::Tensor& series = windows.insample_y;
  return network_->forward(options.exclude_insample_y() ? at::zeros_like(series) : series,
                           windows.futr_exog);
}

void AutoformerImpl::visit_options(OptionVisitor& visitor) {
  models::visit_options(options, visitor);
}

void visit_options(AutoformerOptions& options, OptionVisitor& visitor) {
  visitor.visit("h", options.h());
  visitor.visit("input_size", options.input_size());
  visitor.visit("futr_exog_list", options.futr_exog_list());
  visitor.visit("exclude_insample_y", options.exclude_insample_y());
  visitor.visit("decoder_input_size_multiplier", options.decoder_input_size_multiplier());
  visitor.visit("hidden_size", options.hidden_size());
  visitor.visit("dropout", options.dropout());
  visitor.visit("factor", options.factor());
  visitor.visit("n_head", options.n_head());
  visitor.visit("conv_hidden_size", options.conv_hidden_size());
  visitor.visit("activation", options.activation());
  visitor.visit("encoder_layers", options.encoder_layers());
  visitor.visit("decoder_layers", options.decoder_layers());
  visitor.visit("MovingAvg_window", options.MovingAvg_window());
}

}  // namespace flash::models
