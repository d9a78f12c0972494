#include "layers/fourier_block.h"

#include <torch/torch.h>

#include <cmath>
#include <numbers>
#include <numeric>

#include "layers/complex_tanh.h"
#include "layers/linear.h"
#include "layers/spectral_layout.h"

namespace flash::models {
namespace {

/// Rows cos(2 pi f t / T) for each mode f, then rows -sin(2 pi f t / T): with a series on its
/// right, the real and the imaginary parts of its spectrum. [2 n, T], float64.
at::Tensor mode_rows(const FourierModes& modes) {
  const auto count = static_cast<int64_t>(modes.periods.size());
  at::Tensor table = at::empty({2, count, modes.length}, at::kDouble);
  auto entries = table.accessor<double, 3>();
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t t = 0; t < modes.length; ++t) {
      // Reduced as an integer: exact, however many periods.
      const int64_t step = modes.periods[static_cast<size_t>(i)] * t % modes.length;
      const double angle =
          2.0 * std::numbers::pi * static_cast<double>(step) / static_cast<double>(modes.length);
      entries[0][i][t] = std::cos(angle);
      entries[1][i][t] = -std::sin(angle);
    }
  }
  return table.flatten(0, 1);
}

ModeTable analysis_table(const FourierModes& modes) {
  // Modes are sorted.
  return {mode_rows(modes), !modes.periods.empty() && modes.periods[0] == 0 ? 0 : -1};
}

/// With a spectrum on its left, the real series that has it. [2 n, T], float64. Frequency 0 and
/// that of half the length occur once in a real series' spectrum, the others twice, and what is
/// imaginary in those two is left out, as inverse transforms do.
at::Tensor synthesis_table(const FourierModes& modes) {
  const auto count = static_cast<int64_t>(modes.periods.size());
  at::Tensor weights = at::empty({2, count, 1}, at::kDouble);
  auto entries = weights.accessor<double, 3>();
  for (int64_t i = 0; i < count; ++i) {
    const int64_t periods = modes.periods[static_cast<size_t>(i)];
    const bool once = periods == 0 || 2 * periods == modes.length;
    entries[0][i][0] = (once ? 1.0 : 2.0) / static_cast<double>(modes.length);
    entries[1][i][0] = once ? 0.0 : entries[0][i][0];
  }
  return mode_rows(modes) * weights.flatten(0, 1);
}

/// The modes of map(series) [B, T, D] in a layout. The map is applied to the spectrum, which has
/// fewer rows than a long series; its shift is a constant, which only frequency 0 sees.
at::Tensor spectrum(const at::Tensor& series, const torch::nn::LinearImpl& map,
                    const ModeTable& analysis, int64_t heads, SpectralLayout layout) {
  const at::Tensor of_series = analysis.rows.to(series.scalar_type())
                                   .unsqueeze(0)
                                   .expand({series.size(0), -1, -1})
                                   .bmm(series);
  const at::Tensor mapped =
      models::linear(of_series, map.weight).unflatten(1, {2, -1}).unflatten(3, {heads, -1});
  return rearrange_spectrum(mapped, SpectralLayout::kTransform, layout, DoubledForm::kFactor,
                            {map.bias, analysis.constant, static_cast<double>(series.size(1))});
}

/// A complex product with its own matrix for each mode and head, and the way back in time: kModes
/// -> series [B, T, heads * o], read as fourier_block.h says.
at::Tensor mix_and_synthesize(const at::Tensor& modes, const at::Tensor& weights,
                              const at::Tensor& synthesis) {
  const at::Tensor mixed =
      modes.flatten(3).flatten(0, 1).bmm(real_form(weights).flatten(0, 1));  // [n heads, B, 2 o]
  const at::Tensor result =
      rearrange_spectrum(mixed.view({modes.size(0), modes.size(1), modes.size(2), 2, -1}),
                         SpectralLayout::kModes, SpectralLayout::kTransform)
          .flatten(3)
          .flatten(1, 2);  // [B, 2 n, heads o]
  return result.transpose(1, 2)
      .bmm(synthesis.to(modes.scalar_type()).unsqueeze(0).expand({result.size(0), -1, -1}))
      .view({result.size(0), synthesis.size(1), -1});
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
  InnerMechanism::to(device, c10::toComplexType(dtype), non_blocking);
}

void SpectralMechanism::to(torch::Dtype dtype, bool non_blocking) {
  InnerMechanism::to(c10::toComplexType(dtype), non_blocking);
}

FourierBlockImpl::FourierBlockImpl(int64_t hidden_size, const FourierModes& modes)
    : SpectralMechanism(hidden_size, static_cast<int64_t>(modes.periods.size())),
      analysis_(analysis_table(modes)),
      synthesis_(
          synthesis_table(lowest(static_cast<int64_t>(modes.periods.size()), modes.length))) {}

at::Tensor FourierBlockImpl::forward(AttentionProjections& projections, const at::Tensor& x,
                                     const at::Tensor&) {
  const at::Tensor query =
      spectrum(x, projections.query_layer(), analysis_, kHeads, SpectralLayout::kModes);
  return projections.out(mix_and_synthesize(query, weights_, synthesis_));
}

FourierCrossAttentionImpl::FourierCrossAttentionImpl(int64_t hidden_size, const FourierModes& query,
                                                     const FourierModes& key)
    : SpectralMechanism(hidden_size, static_cast<int64_t>(query.periods.size())),
      query_analysis_(analysis_table(query)),
      key_analysis_(analysis_table(key)),
      synthesis_(synthesis_table(query) / static_cast<double>(hidden_size * hidden_size)) {}

at::Tensor FourierCrossAttentionImpl::forward(AttentionProjections& projections,
                                              const at::Tensor& x, const at::Tensor& memory) {
  const at::Tensor queries =  // [B, heads, 2, nq, 2, e]
      spectrum(x, projections.query_layer(), query_analysis_, kHeads, SpectralLayout::kDoubled);
  const at::Tensor keys =  // [B heads, nk, 2 e]
      spectrum(memory, projections.key_layer(), key_analysis_, kHeads, SpectralLayout::kHeads)
          .flatten(3)
          .flatten(0, 1);
  const at::Tensor scores =  // [B heads, 2 nq, nk]: real parts, then imaginary parts
      queries.flatten(4).flatten(2, 3).flatten(0, 1).bmm(keys.transpose(1, 2));
  const at::Tensor weights =
      complex_tanh(scores.view({scores.size(0), 2, -1})).view(scores.sizes());
  // Real and imaginary weights with real and imaginary keys.
  const at::Tensor products = weights.bmm(keys).view(queries.sizes());
  const at::Tensor attended = rearrange_spectrum(products, SpectralLayout::kDoubled,
                                                 SpectralLayout::kModes, DoubledForm::kProduct);
  return projections.out(mix_and_synthesize(attended, weights_, synthesis_));
}

}  // namespace flash::models
