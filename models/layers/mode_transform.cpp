#include "layers/mode_transform.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <torch/torch.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <vector>

#include "layers/block_product.h"
#include "layers/function_clones.h"
#include "layers/row_blocks.h"

namespace flash::models {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// One series: T steps of C channels, and n modes.
struct Sizes {
  int64_t times, channels, modes;
  int64_t steps() const { return times / 2 + 1; }  ///< of a folded series
  int64_t row() const { return padded_row(channels); }
};

// Folded: sums x[t] + x[T - t] [steps, C] and then differences x[t] - x[T - t]. The first step, and
// the middle one of an even length, are their own mirror: the sum has them once, the difference not
// at all.

template <class T>
[[gnu::always_inline]] inline void fold(const Sizes& s, const T* x, T* sums, T* differences) {
  for (int64_t t = 0; t < s.steps(); ++t) {
    const int64_t mirror = s.times - t;
    const T* const here = x + t * s.channels;
    T* const sum = sums + t * s.row();
    T* const difference = differences + t * s.row();
    if (t == 0 || t == mirror) {
      for (int64_t c = 0; c < s.channels; ++c) sum[c] = here[c], difference[c] = T(0);
      continue;
    }
    const T* const there = x + mirror * s.channels;
#pragma omp simd
    for (int64_t c = 0; c < s.channels; ++c) {
      sum[c] = here[c] + there[c];
      difference[c] = here[c] - there[c];
    }
  }
}

/// The adjoint of `fold`.
template <class T>
[[gnu::always_inline]] inline void unfold(const Sizes& s, const T* sums, const T* differences,
                                          T* x) {
  for (int64_t t = 0; t < s.steps(); ++t) {
    const int64_t mirror = s.times - t;
    const T* const sum = sums + t * s.row();
    const T* const difference = differences + t * s.row();
    T* const here = x + t * s.channels;
    if (t == 0 || t == mirror) {
      for (int64_t c = 0; c < s.channels; ++c) here[c] = sum[c];
      continue;
    }
    T* const there = x + mirror * s.channels;
#pragma omp simd
    for (int64_t c = 0; c < s.channels; ++c) {
      here[c] = sum[c] + difference[c];
      there[c] = sum[c] - difference[c];
    }
  }
}

/// As `fold` for a series [C, T], whose result is transposed: [steps, C]. Channels go in groups
/// that make whole cache lines of the result.
template <class T>
[[gnu::always_inline]] inline void fold_transposed(const Sizes& s, const T* x, T* sums,
                                                   T* differences) {
  constexpr int64_t kGroup = 64 / sizeof(T);
  for (int64_t first = 0; first < s.channels; first += kGroup) {
    const int64_t last = std::min(s.channels, first + kGroup);
    for (int64_t t = 0; t < s.steps(); ++t) {
      const int64_t mirror = s.times - t;
      const bool once = t == 0 || t == mirror;
      const T* const here = x + t;
      const T* const there = x + (once ? t : mirror);
      T* const sum = sums + t * s.row();
      T* const difference = differences + t * s.row();
      for (int64_t c = first; c < last; ++c) {
        const T a = here[c * s.times], b = there[c * s.times];
        sum[c] = once ? a : a + b;
        difference[c] = once ? T(0) : a - b;
      }
    }
  }
}

/// sums and differences [C, padded steps] -> [C, T]
template <class T>
[[gnu::always_inline]] inline void unfold_rows(const Sizes& s, const T* sums, const T* differences,
                                               T* x) {
  const int64_t pairs = (s.times - 1) / 2;
  for (int64_t c = 0; c < s.channels; ++c) {
    const T* const sum = sums + c * padded_row(s.steps());
    const T* const difference = differences + c * padded_row(s.steps());
    T* const row = x + c * s.times;
    row[0] = sum[0];
    if (s.times % 2 == 0) row[s.times / 2] = sum[s.times / 2];
#pragma omp simd
    for (int64_t t = 1; t <= pairs; ++t) row[t] = sum[t] + difference[t];
    T* const mirrored = row + s.times - pairs;
#pragma omp simd
    for (int64_t i = 0; i < pairs; ++i) mirrored[i] = sum[pairs - i] - difference[pairs - i];
  }
}

#define FLASH_FOLD_LOOPS(T)                                                                        \
  FLASH_FUNCTION_CLONES void fold_loop(const Sizes& s, const T* x, T* sums, T* differences) {      \
    fold(s, x, sums, differences);                                                                 \
  }                                                                                                \
  FLASH_FUNCTION_CLONES void unfold_loop(const Sizes& s, const T* sums, const T* differences,      \
                                         T* x) {                                                   \
    unfold(s, sums, differences, x);                                                               \
  }                                                                                                \
  FLASH_FUNCTION_CLONES void fold_transposed_loop(const Sizes& s, const T* x, T* sums,             \
                                                  T* differences) {                                \
    fold_transposed(s, x, sums, differences);                                                      \
  }                                                                                                \
  FLASH_FUNCTION_CLONES void unfold_rows_loop(const Sizes& s, const T* sums, const T* differences, \
                                              T* x) {                                              \
    unfold_rows(s, sums, differences, x);                                                          \
  }
FLASH_FOLD_LOOPS(float)
FLASH_FOLD_LOOPS(double)

/// In the dtype of x, rows padded as block_product.h reads them.
at::Tensor padded_table(const at::Tensor& table, const at::Tensor& x) {
  return at::constant_pad_nd(table.to(x.scalar_type()),
                             {0, padded_row(table.size(2)) - table.size(2)});
}

/// Calls call(b, scratch) for each series, with `numbers` of memory for each thread.
template <class T, class Call>
void for_series(int64_t batch, int64_t numbers, const Call& call) {
  at::parallel_for(0, batch, 1, [&](int64_t begin, int64_t end) {
    std::vector<T> scratch(static_cast<size_t>(numbers));
    for (int64_t b = begin; b < end; ++b) call(b, scratch.data());
  });
}

/// A spectrum's part as a right factor, copied where its rows are too short to be read as that.
template <class T>
RowMatrix<const T> readable(const Sizes& s, const T* part, T* copy) {
  if (s.row() == s.channels) return {part, s.channels};
  for (int64_t m = 0; m < s.modes; ++m) {
    std::copy_n(part + m * s.channels, s.channels, copy + m * s.row());
  }
  return {copy, s.row()};
}

/// [B, T, C], or [B, C, T] where `transposed` -> [B, 2, n, C]
at::Tensor to_modes(const at::Tensor& series, const at::Tensor& table, bool transposed) {
  const at::Tensor x = series.contiguous(), rows = padded_table(table, x);
  const Sizes s = {x.size(transposed ? 2 : 1), x.size(transposed ? 1 : 2), table.size(1)};
  at::Tensor out = at::empty({x.size(0), 2, s.modes, s.channels}, x.options());
  const int64_t half = s.steps() * s.row();
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "analyze_modes", [&] {
    const auto* const in = x.const_data_ptr<scalar_t>();
    const auto* const factors = rows.const_data_ptr<scalar_t>();
    auto* const spectrum = out.mutable_data_ptr<scalar_t>();
    for_series<scalar_t>(x.size(0), 2 * half, [&](int64_t b, scalar_t* folded) {
      const scalar_t* const one = in + b * s.times * s.channels;
      transposed ? fold_transposed_loop(s, one, folded, folded + half)
                 : fold_loop(s, one, folded, folded + half);
      for (int64_t part = 0; part < 2; ++part) {
        block_product(
            {s.modes, s.channels, s.steps()},
            LeftFactor<scalar_t>{factors + part * s.modes * rows.size(2), rows.size(2), 1},
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
  const Sizes s = {length, x.size(3), table.size(1)};
  at::Tensor out = at::empty({x.size(0), length, s.channels}, x.options());
  const int64_t half = s.steps() * s.row();
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "analyze_modes_backward", [&] {
    const auto* const in = x.const_data_ptr<scalar_t>();
    const auto* const factors = rows.const_data_ptr<scalar_t>();
    auto* const series = out.mutable_data_ptr<scalar_t>();
    for_series<scalar_t>(x.size(0), 2 * half + s.modes * s.row(), [&](int64_t b, scalar_t* folded) {
      for (int64_t part = 0; part < 2; ++part) {
        block_product(
            {s.steps(), s.channels, s.modes},
            LeftFactor<scalar_t>{factors + part * s.modes * rows.size(2), 1, rows.size(2)},
            readable(s, in + (2 * b + part) * s.modes * s.channels, folded + 2 * half),
            {folded + part * half, s.row()});
      }
      unfold_loop(s, folded, folded + half, series + b * length * s.channels);
    });
  });
  return out;
}

/// [B, 2, n, C] -> [B, C, T]
at::Tensor to_transposed_series(const at::Tensor& spectrum, const at::Tensor& table,
                                int64_t length) {
  const at::Tensor x = spectrum.contiguous(), rows = padded_table(table, x);
  const Sizes s = {length, x.size(3), table.size(1)};
  at::Tensor out = at::empty({x.size(0), s.channels, length}, x.options());
  const int64_t half = s.channels * rows.size(2);
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "synthesize_modes", [&] {
    const auto* const in = x.const_data_ptr<scalar_t>();
    const auto* const factors = rows.const_data_ptr<scalar_t>();
    auto* const series = out.mutable_data_ptr<scalar_t>();
    for_series<scalar_t>(x.size(0), 2 * half, [&](int64_t b, scalar_t* folded) {
      for (int64_t part = 0; part < 2; ++part) {
        block_product(
            {s.channels, s.steps(), s.modes},
            LeftFactor<scalar_t>{in + (2 * b + part) * s.modes * s.channels, 1, s.channels},
            {factors + part * s.modes * rows.size(2), rows.size(2)},
            {folded + part * half, rows.size(2)});
      }
      unfold_rows_loop(s, folded, folded + half, series + b * s.channels * length);
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
      // Reduced as an integer: exact, however many periods.
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
