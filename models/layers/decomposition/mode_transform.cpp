#include "layers/decomposition/mode_transform.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <flash_attention/layer_kernels.h>
#include <torch/torch.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <vector>

#include "layers/common/row_blocks.h"

namespace flash::models {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// One series of T steps and C channels, and its n modes.
struct TransformSizes {
  int64_t times, channels, modes;
  int64_t steps() const { return times / 2 + 1; }  ///< of a folded series
  /// Of a folded series: an odd number of cache lines, because rows a power of two apart would
  /// share a few sets of the first-level cache.
  int64_t row() const { return padded_row(channels) | 16; }
  kernels::Folding folding(int64_t folded_row) const { return {times, channels, folded_row}; }
};

/// `table` in the dtype of x, with padded rows.
at::Tensor padded_table(const at::Tensor& table, const at::Tensor& x) {
  return at::constant_pad_nd(table.to(x.scalar_type()),
                             {0, padded_row(table.size(2)) - table.size(2)});
}

/// Calls call(b, scratch) for each series; a thread has `elements` of scratch memory.
template <class T, class Call>
void for_series(int64_t batch, int64_t elements, const Call& call) {
  at::parallel_for(0, batch, 1, [&](int64_t begin, int64_t end) {
    std::vector<T> scratch(static_cast<size_t>(elements));
    for (int64_t b = begin; b < end; ++b) call(b, scratch.data());
  });
}

/// [B, T, C], or [B, C, T] if `transposed`, -> [B, 2, n, C]
at::Tensor to_modes(const at::Tensor& series, const at::Tensor& table, bool transposed) {
  const at::Tensor x = series.contiguous(), rows = padded_table(table, x);
  const TransformSizes s = {x.size(transposed ? 2 : 1), x.size(transposed ? 1 : 2), table.size(1)};
  at::Tensor out = at::empty({x.size(0), 2, s.modes, s.channels}, x.options());
  const int64_t half = s.steps() * s.row();
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "analyze_modes", [&] {
    const auto* const in = x.const_data_ptr<scalar_t>();
    const auto* const factors = rows.const_data_ptr<scalar_t>();
    auto* const spectrum = out.mutable_data_ptr<scalar_t>();
    for_series<scalar_t>(x.size(0), 2 * half, [&](int64_t b, scalar_t* folded) {
      const scalar_t* const one = in + b * s.times * s.channels;
      if (transposed) {
        kernels::fold_transposed(s.folding(s.row()), one, folded, folded + half);
      } else {
        kernels::fold(s.folding(s.row()), one, folded, folded + half);
      }
      for (int64_t part = 0; part < 2; ++part) {
        kernels::block_product(
            {s.modes, s.channels, s.steps()},
            kernels::LeftFactor<scalar_t>{factors + part * s.modes * rows.size(2), rows.size(2), 1},
            {folded + part * half, s.row()},
            {spectrum + (2 * b + part) * s.modes * s.channels, s.channels});
      }
    });
  });
  return out;
}

/// [B, 2, n, C] -> [B, T, C]
at::Tensor to_series(const at::Tensor& spectrum, const at::Tensor& table, int64_t length) {
  const at::Tensor x = spectrum.contiguous(), rows = padded_table(table, x);
  const TransformSizes s = {length, x.size(3), table.size(1)};
  at::Tensor out = at::empty({x.size(0), length, s.channels}, x.options());
  const int64_t half = s.steps() * s.row();
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "analyze_modes_backward", [&] {
    const auto* const in = x.const_data_ptr<scalar_t>();
    const auto* const factors = rows.const_data_ptr<scalar_t>();
    auto* const series = out.mutable_data_ptr<scalar_t>();
    for_series<scalar_t>(x.size(0), 2 * half, [&](int64_t b, scalar_t* folded) {
      for (int64_t part = 0; part < 2; ++part) {
        kernels::block_product(
            {s.steps(), s.channels, s.modes},
            kernels::LeftFactor<scalar_t>{factors + part * s.modes * rows.size(2), 1, rows.size(2)},
            {in + (2 * b + part) * s.modes * s.channels, s.channels},
            {folded + part * half, s.row()});
      }
      kernels::unfold(s.folding(s.row()), folded, folded + half, series + b * length * s.channels);
    });
  });
  return out;
}

/// [B, 2, n, C] -> [B, C, T]
at::Tensor to_transposed_series(const at::Tensor& spectrum, const at::Tensor& table,
                                int64_t length) {
  const at::Tensor x = spectrum.contiguous(), rows = padded_table(table, x);
  const TransformSizes s = {length, x.size(3), table.size(1)};
  at::Tensor out = at::empty({x.size(0), s.channels, length}, x.options());
  const int64_t half = s.channels * rows.size(2);
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "synthesize_modes", [&] {
    const auto* const in = x.const_data_ptr<scalar_t>();
    const auto* const factors = rows.const_data_ptr<scalar_t>();
    auto* const series = out.mutable_data_ptr<scalar_t>();
    for_series<scalar_t>(x.size(0), 2 * half, [&](int64_t b, scalar_t* folded) {
      for (int64_t part = 0; part < 2; ++part) {
        kernels::block_product({s.channels, s.steps(), s.modes},
                               kernels::LeftFactor<scalar_t>{
                                   in + (2 * b + part) * s.modes * s.channels, 1, s.channels},
                               {factors + part * s.modes * rows.size(2), rows.size(2)},
                               {folded + part * half, rows.size(2)});
      }
      kernels::unfold_rows(s.folding(rows.size(2)), folded, folded + half,
                           series + b * s.channels * length);
    });
  });
  return out;
}

class Analysis : public torch::autograd::Function<Analysis> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& series,
                            const at::Tensor& table) {
    context->saved_data["table"] = table;
    context->saved_data["length"] = series.size(1);
    return to_modes(series, table, /*transposed=*/false);
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    refuse_second_derivative("analyze_modes");
    return {to_series(gradients[0], context->saved_data["table"].toTensor(),
                      context->saved_data["length"].toInt()),
            at::Tensor()};
  }
};

class Synthesis : public torch::autograd::Function<Synthesis> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& spectrum,
                            const at::Tensor& table, int64_t length) {
    context->saved_data["table"] = table;
    return to_transposed_series(spectrum, table, length);
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    refuse_second_derivative("synthesize_modes");
    return {to_modes(gradients[0], context->saved_data["table"].toTensor(), /*transposed=*/true),
            at::Tensor(), at::Tensor()};
  }
};

}  // namespace

at::Tensor analysis_table(const FourierModes& modes) {
  const auto count = static_cast<int64_t>(modes.periods.size());
  at::Tensor table = at::empty({2, count, modes.length / 2 + 1}, at::kDouble);
  auto entries = table.accessor<double, 3>();
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t t = 0; t < table.size(2); ++t) {
      // Reduced modulo T as an integer, which is exact for any number of periods.
      const int64_t step = modes.periods[static_cast<size_t>(i)] * t % modes.length;
      const double angle =
          2.0 * std::numbers::pi * static_cast<double>(step) / static_cast<double>(modes.length);
      entries[0][i][t] = std::cos(angle);
      entries[1][i][t] = -std::sin(angle);
    }
  }
  return table;
}

at::Tensor synthesis_table(const FourierModes& modes) {
  at::Tensor table = analysis_table(modes);
  for (int64_t i = 0; i < table.size(1); ++i) {
    const int64_t periods = modes.periods[static_cast<size_t>(i)];
    const bool once = periods == 0 || 2 * periods == modes.length;
    table.select(1, i).mul_((once ? 1.0 : 2.0) / static_cast<double>(modes.length));
    if (once) table[1][i].zero_();
  }
  return table;
}

at::Tensor analyze_modes(const at::Tensor& series, const at::Tensor& table) {
  return Analysis::apply(series, table);
}

at::Tensor synthesize_modes(const at::Tensor& spectrum, const at::Tensor& table, int64_t length) {
  return Synthesis::apply(spectrum, table, length);
}

}  // namespace flash::models
