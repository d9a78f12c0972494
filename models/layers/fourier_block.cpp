#include "layers/fourier_block.h"

#include <torch/torch.h>

#include <cmath>
#include <numbers>
#include <numeric>

#include "layers/complex_tanh.h"

namespace flash::models {
namespace {

/// Rows cos(2 pi f t / T) for each mode f, then rows -sin(2 pi f t / T): with a series on its right,
/// the real and the imaginary parts of its spectrum. [2 n, T], float64.
at::Tensor analysis_table(const FourierModes& modes) {
  const auto count = static_cast<int64_t>(modes.periods.size());
  at::Tensor table = at::empty({2, count, modes.length}, at::kDouble);
  auto entries = table.accessor<double, 3>();
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t t = 0; t < modes.length; ++t) {
      // Reduced as an integer: exact, however many periods.
      const int64_t step = modes.periods[static_cast<size_t>(i)] * t % modes.length;
      const double angle = 2.0 * std::numbers::pi * static_cast<double>(step) /
                           static_cast<double>(modes.length);
      entries[0][i][t] = std::cos(angle);
      entries[1][i][t] = -std::sin(angle);
    }
  }
  return table.flatten(0, 1);
}

/// With a spectrum on its left, the real series that has it. [2 n, T], float64. Frequency 0 and that
/// of half the length occur once in a real series' spectrum, the others twice, and what is imaginary
/// in those two is left out, as inverse transforms do.
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
  return analysis_table(modes) * weights.flatten(0, 1);
}

/// series [B, T, heads * e] -> the modes of its spectrum [B, 2, n, heads, e]
at::Tensor spectrum(const at::Tensor& series, const at::Tensor& analysis, int64_t heads) {
  const at::Tensor table = analysis.to(series.scalar_type());
  return table.unsqueeze(0)
      .expand({series.size(0), -1, -1})
      .bmm(series)
      .unflatten(1, {2, -1})
      .unflatten(3, {heads, -1});
}

/// The real matrices [n, heads, 2 e, 2 o] that multiply rows of real parts and then imaginary parts as
/// the complex weights [heads, e, o, n] multiply complex rows.
at::Tensor real_form(const at::Tensor& weights) {
  const at::Tensor parts = at::view_as_real(weights).permute({4, 3, 0, 1, 2});
  const at::Tensor real = parts[0], imaginary = parts[1];
  return at::cat({at::cat({real, imaginary}, 3), at::cat({-imaginary, real}, 3)}, 2);
}

/// A complex product with its own matrix for each mode and head, and the way back in time:
/// parts [n, heads, B, 2, e] -> series [B, T, heads * o], read as fourier_block.h says.
at::Tensor mix_and_synthesize(const at::Tensor& parts, const at::Tensor& weights,
                              const at::Tensor& synthesis) {
  const at::Tensor mixed =  // [n * heads, B, 2 o]
      parts.flatten(3).flatten(0, 1).bmm(real_form(weights).flatten(0, 1));
  const at::Tensor modes = mixed.view({parts.size(0), parts.size(1), parts.size(2), 2, -1})
                               .permute({2, 1, 4, 3, 0})  // [B, heads, o, 2, n]
                               .flatten(3)
                               .flatten(0, 2);
  const at::Tensor series = modes.mm(synthesis.to(parts.scalar_type()));  // [B heads o, T]
  return series.view({parts.size(2), synthesis.size(1), -1});
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
      synthesis_(synthesis_table(
          lowest(static_cast<int64_t>(modes.periods.size()), modes.length))) {}

at::Tensor FourierBlockImpl::forward(AttentionProjections& projections, const at::Tensor& x,
                                     const at::Tensor&) {
  const at::Tensor query = spectrum(projections.query(x), analysis_, kHeads);
  return mix_and_synthesize(query.permute({2, 3, 0, 1, 4}), weights_, synthesis_);
}

FourierCrossAttentionImpl::FourierCrossAttentionImpl(int64_t hidden_size, const FourierModes& query,
                                                     const FourierModes& key)
    : SpectralMechanism(hidden_size, static_cast<int64_t>(query.periods.size())),
      query_analysis_(analysis_table(query)),
      key_analysis_(analysis_table(key)),
      synthesis_(synthesis_table(query) / static_cast<double>(hidden_size * hidden_size)) {}

at::Tensor FourierCrossAttentionImpl::forward(AttentionProjections& projections,
                                              const at::Tensor& x, const at::Tensor& memory) {
  const auto by_head = [](const at::Tensor& parts) {  // [B, 2, n, heads, e] -> [B, heads, n, 2, e]
    return parts.permute({0, 3, 2, 1, 4});
  };
  const at::Tensor query = by_head(spectrum(projections.query(x), query_analysis_, kHeads));
  const at::Tensor keys =  // [B heads, nk, 2 e]
      by_head(spectrum(projections.key(memory), key_analysis_, kHeads)).flatten(3).flatten(0, 1);
  // Rows (qr, -qi) and (qi, qr): with rows (kr, ki) they give the product's real parts, then its
  // imaginary parts.
  const at::Tensor real = query.select(3, 0), imaginary = query.select(3, 1);
  const at::Tensor queries =  // [B heads, 2 nq, 2 e]
      at::cat({at::cat({real, -imaginary}, 3), at::cat({imaginary, real}, 3)}, 2).flatten(0, 1);
  const at::Tensor scores = queries.bmm(keys.transpose(1, 2));  // [B heads, 2 nq, nk]
  const at::Tensor weights =
      complex_tanh(scores.view({scores.size(0), 2, -1})).view(scores.sizes());
  const at::Tensor products =  // of real and imaginary weights with real and imaginary keys
      weights.bmm(keys).view({x.size(0), kHeads, 2, -1, 2, hidden_size_ / kHeads});
  const at::Tensor of_real = products.select(2, 0), of_imaginary = products.select(2, 1);
  const at::Tensor attended =  // [B, heads, nq, 2, e]
      at::stack({of_real.select(3, 0) - of_imaginary.select(3, 1),
                 of_real.select(3, 1) + of_imaginary.select(3, 0)},
                3);
  return mix_and_synthesize(attended.permute({2, 1, 0, 3, 4}), weights_, synthesis_);
}

}  // namespace flash::models
