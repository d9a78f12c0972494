#include <flash_attention/models/fedformer.h>
#include <torch/torch.h>

#include <algorithm>
#include <numeric>
#include <utility>

#include "layers/decomposition/decomposition_options.h"
#include "layers/decomposition/decomposition_transformer.h"
#include "layers/decomposition/fourier_block.h"
#include "layers/decomposition/fourier_modes.h"
#include "message_text.h"
#include "option_visitor.h"

namespace flash::models {
namespace {

std::vector<int64_t> lowest_modes(int64_t modes, int64_t length) {
  std::vector<int64_t> list(static_cast<size_t>(std::min(modes, length / 2)));
  std::iota(list.begin(), list.end(), 0);
  return list;
}

/// The frequencies that mode_select asks for. neuralforecast always builds the decoder's blocks for
/// half the window and h steps, even if the decoder sees more or fewer.
FourierIndex chosen_modes(FEDformerOptions& options) {
  const int64_t h = options.h(), input_size = options.input_size(), modes = options.modes();
  if (options.mode_select() == "random") {
    return random_fourier_modes(h, input_size, modes, static_cast<uint32_t>(options.random_seed()));
  }
  const std::vector<int64_t> encoder = lowest_modes(modes, input_size);
  const std::vector<int64_t> decoder = lowest_modes(modes, input_size / 2 + h);
  return {{"enc_self", encoder},
          {"dec_self", decoder},
          {"dec_cross_q", decoder},
          {"dec_cross_kv", encoder}};
}

void check_modes(const FourierIndex& index, const std::string& name, int64_t length) {
  const auto found = index.find(name);
  TORCH_CHECK_VALUE(found != index.end(), "FEDformer: expected fourier_index with a list \"", name,
                    "\", got none; leave fourier_index empty to have all frequencies chosen");
  const std::vector<int64_t>& list = found->second;
  TORCH_CHECK_VALUE(!list.empty(), "FEDformer: expected at least one frequency in fourier_index \"",
                    name, "\", got none; is the window too short?");
  TORCH_CHECK_VALUE(
      std::adjacent_find(list.begin(), list.end(), std::greater_equal<>()) == list.end(),
      "FEDformer: expected fourier_index \"", name, "\" sorted and without repetition, got ",
      shortened(c10::str(c10::ArrayRef<int64_t>(list))));
  TORCH_CHECK_VALUE(list.front() >= 0 && list.back() <= length / 2,
                    "FEDformer: expected frequencies between 0 and ", length / 2,
                    " in fourier_index \"", name, "\", since the sequence has ", length,
                    " steps, got ", shortened(c10::str(c10::ArrayRef<int64_t>(list))),
                    "; take fewer modes or a larger decoder_input_size_multiplier");
}

void check_options(FEDformerOptions& options) {
  const DecompositionTransformerOptions network = decomposition_options(options);
  TORCH_CHECK_VALUE(options.n_head() == 8, "FEDformer: expected n_head 8, got ", options.n_head(),
                    "; its Fourier blocks have 8 heads");
  TORCH_CHECK_VALUE(options.version() == "Fourier",
                    "FEDformer: expected version \"Fourier\", got \"", excerpt(options.version()),
                    "\"; there is no other");
  TORCH_CHECK_VALUE(options.random_seed() >= 0 && options.random_seed() <= 0xffffffff,
                    "FEDformer: expected random_seed between 0 and 2^32 - 1, got ",
                    options.random_seed());
  if (options.fourier_index().empty()) options.fourier_index(chosen_modes(options));
  const int64_t decoder = network.label_length + network.h;
  check_modes(options.fourier_index(), "enc_self", network.input_size);
  check_modes(options.fourier_index(), "dec_self", decoder);
  check_modes(options.fourier_index(), "dec_cross_q", decoder);
  check_modes(options.fourier_index(), "dec_cross_kv", network.input_size);
}

}  // namespace

FEDformerImpl::FEDformerImpl(FEDformerOptions options_) : ForecastModelBase(std::move(options_)) {
  check_options(options);
  reset();
}

void FEDformerImpl::reset() {
  const DecompositionTransformerOptions sizes = decomposition_options(options);
  const auto modes = [this](const char* name, int64_t length) {
    return FourierModes{options.fourier_index().at(name), length};
  };
  network_ = std::make_shared<DecompositionTransformer>();
  network_->register_in(*this, sizes, [&] {
    const int64_t encoder = sizes.input_size, decoder = sizes.label_length + sizes.h;
    SharedMechanisms blocks;  // in this order, because each draws its weights
    blocks.encoder_self =
        std::make_shared<FourierBlock>(sizes.hidden_size, modes("enc_self", encoder));
    blocks.decoder_self =
        std::make_shared<FourierBlock>(sizes.hidden_size, modes("dec_self", decoder));
    blocks.decoder_cross = std::make_shared<FourierCrossAttention>(
        sizes.hidden_size, modes("dec_cross_q", decoder), modes("dec_cross_kv", encoder));
    return blocks;
  });
}

std::shared_ptr<torch::nn::Module> FEDformerImpl::clone(
    const std::optional<torch::Device>& device) const {
  auto copy = std::make_shared<FEDformerImpl>(options);
  copy_parameters(*this, *copy, device);
  return copy;
}

at::Tensor FEDformerImpl::forward(const WindowsBatch& windows) {
  check_windows(windows, options);
  return network_->forward(windows.insample_y, windows.futr_exog);
}

std::map<std::string, std::string> FEDformerImpl::tied_parameters() const {
  return network_->tied_parameters();
}

void visit_options(FEDformerOptions& options, OptionVisitor& visitor) {
  visitor.visit_size("h", options.h());
  visitor.visit_size("input_size", options.input_size());
  visitor.visit("futr_exog_list", options.futr_exog_list());
  visitor.visit("decoder_input_size_multiplier", options.decoder_input_size_multiplier());
  visitor.visit("version", options.version());
  visitor.visit_size("modes", options.modes());
  visitor.visit("mode_select", options.mode_select());
  visitor.visit_size("hidden_size", options.hidden_size());
  visitor.visit_probability("dropout", options.dropout());
  visitor.visit_size("n_head", options.n_head());
  visitor.visit_size("conv_hidden_size", options.conv_hidden_size());
  visitor.visit("activation", options.activation());
  visitor.visit_size("encoder_layers", options.encoder_layers());
  visitor.visit_size("decoder_layers", options.decoder_layers());
  visitor.visit_size("MovingAvg_window", options.MovingAvg_window());
  visitor.visit("random_seed", options.random_seed());
  visitor.visit_extension("fourier_index", options.fourier_index());
}

}  // namespace flash::models
