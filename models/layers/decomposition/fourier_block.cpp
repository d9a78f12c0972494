#include "layers/decomposition/fourier_block.h"

#include <torch/torch.h>

#include <numeric>

#include "layers/common/linear.h"
#include "layers/common/row_blocks.h"
#include "layers/decomposition/mode_attention.h"
#include "layers/decomposition/mode_mixing.h"

namespace flash::models {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

ModeTable table_of(const FourierModes& modes) {
  // Modes are sorted.
  return {analysis_table(modes), !modes.periods.empty() && modes.periods[0] == 0 ? 0 : -1};
}

/// Adds the modes of a series that is constant in time to spectrum [B, 2, n, C], in place.
class AddConstant : public torch::autograd::Function<AddConstant> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& spectrum,
                            const at::Tensor& constant, int64_t mode, double length) {
    context->saved_data["mode"] = mode;
    context->saved_data["length"] = length;
    context->mark_dirty({spectrum});
    if (mode >= 0) spectrum.select(1, 0).select(1, mode).add_(constant, length);
    return spectrum;
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    refuse_second_derivative("FEDformer's spectrum");
    const at::Tensor& g = gradients[0];
    const int64_t mode = context->saved_data["mode"].toInt();
    const double length = context->saved_data["length"].toDouble();
    // Without frequency 0 the constant has no effect; its gradient is zero instead of none.
    const at::Tensor of_constant = mode < 0 ? at::zeros({g.size(3)}, g.options())
                                            : g.select(1, 0).select(1, mode).sum(0).mul(length);
    return {g, of_constant, at::Tensor(), at::Tensor()};
  }
};

/// The modes of map(series), series [B, T, D] -> [B, 2, n, D]. The weight is applied to the
/// spectrum, which has fewer rows than a long series; the bias is constant in time and affects
/// frequency 0 only.
at::Tensor spectrum(const at::Tensor& series, const torch::nn::LinearImpl& map,
                    const ModeTable& table) {
  const at::Tensor mapped = models::linear(analyze_modes(series, table.rows), map.weight);
  return AddConstant::apply(mapped, map.bias, table.constant, static_cast<double>(series.size(1)));
}

/// Back to a series, whose memory is read as fourier_block.h describes.
at::Tensor synthesize(const at::Tensor& modes, const at::Tensor& table, int64_t length) {
  return synthesize_modes(modes, table, length).view({modes.size(0), length, -1});
}

FourierModes lowest(int64_t count, int64_t length) {
  std::vector<int64_t> periods(static_cast<size_t>(count));
  std::iota(periods.begin(), periods.end(), 0);
  return {std::move(periods), length};
}

}  // namespace

SpectralMechanism::SpectralMechanism(int64_t hidden_size, int64_t modes)
    : hidden_size_(hidden_size) {
  const int64_t width = hidden_size / kHeads;
  const double scale = 1.0 / static_cast<double>(hidden_size * hidden_size);
  weights_ = register_parameter(
      "weights1", scale * torch::rand({kHeads, width, width, modes}, torch::kComplexFloat));
}

void SpectralMechanism::to(torch::Device device, torch::Dtype dtype, bool non_blocking) {
  AttentionMechanism::to(device, c10::toComplexType(dtype), non_blocking);
}

void SpectralMechanism::to(torch::Dtype dtype, bool non_blocking) {
  AttentionMechanism::to(c10::toComplexType(dtype), non_blocking);
}

FourierBlock::FourierBlock(int64_t hidden_size, const FourierModes& modes)
    : SpectralMechanism(hidden_size, static_cast<int64_t>(modes.periods.size())),
      analysis_(table_of(modes)),
      synthesis_(
          synthesis_table(lowest(static_cast<int64_t>(modes.periods.size()), modes.length))) {}

at::Tensor FourierBlock::forward(const AttentionProjections& projections, const at::Tensor& x,
                                 const at::Tensor&, bool) const {
  const at::Tensor query = spectrum(x, projections.query_layer(), analysis_);
  return projections.out(synthesize(mix_modes(query, weights_), synthesis_, x.size(1)));
}

FourierCrossAttention::FourierCrossAttention(int64_t hidden_size, const FourierModes& query,
                                             const FourierModes& key)
    : SpectralMechanism(hidden_size, static_cast<int64_t>(query.periods.size())),
      query_analysis_(table_of(query)),
      key_analysis_(table_of(key)),
      synthesis_(synthesis_table(query) / static_cast<double>(hidden_size * hidden_size)) {}

at::Tensor FourierCrossAttention::forward(const AttentionProjections& projections,
                                          const at::Tensor& x, const at::Tensor& memory,
                                          bool) const {
  const at::Tensor attended =
      attend_modes(spectrum(x, projections.query_layer(), query_analysis_),
                   spectrum(memory, projections.key_layer(), key_analysis_), kHeads);
  return projections.out(synthesize(mix_modes(attended, weights_), synthesis_, x.size(1)));
}

}  // namespace flash::models
