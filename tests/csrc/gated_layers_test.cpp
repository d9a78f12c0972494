// Tests the layer kernels of gated residual networks and of the LSTM on every instruction set:
// forwards against references in long double, backwards against finite differences of those.

#include <functional>

#include "tests/csrc/layers.h"

namespace flash {
namespace {

using testing::Dtypes;
using testing::expect_close;
using testing::Guarded;
using testing::GuardPage;
using testing::in_double;
using testing::kWidths;
using testing::layers;
using testing::normal;
using testing::on_every_isa;

using Real = long double;
using Reals = std::vector<Real>;

template <class T>
class GatedLayers : public testing::OnBothDtypes<T> {};
TYPED_TEST_SUITE(GatedLayers, Dtypes);

// Machine epsilons for a few operations and one function with an error of a few ulp, on values
// below 8.
constexpr double kFewOperations = 32;
// Machine epsilons for a norm over up to 200 columns, or for sums over rows.
constexpr double kSums = 256;

constexpr GatedActivation kActivations[] = {GatedActivation::kRelu,      GatedActivation::kSoftplus,
                                            GatedActivation::kTanh,      GatedActivation::kSelu,
                                            GatedActivation::kLeakyRelu, GatedActivation::kSigmoid,
                                            GatedActivation::kElu,       GatedActivation::kGelu};

template <class T>
Reals widened(const std::vector<T>& x) {
  return {x.begin(), x.end()};
}

std::vector<double> rounded(const Reals& x) { return {x.begin(), x.end()}; }

Real sigmoid(Real x) { return 1 / (1 + std::exp(-x)); }

Real activation(GatedActivation kind, Real x) {
  constexpr Real kAlpha = 1.6732632423543772848170429916717L;
  constexpr Real kScale = 1.0507009873554804934193349852946L;
  switch (kind) {
    case GatedActivation::kRelu:
      return x > 0 ? x : 0;
    case GatedActivation::kSoftplus:
      return x > 20 ? x : std::log1p(std::exp(x));  // as in torch
    case GatedActivation::kTanh:
      return std::tanh(x);
    case GatedActivation::kSelu:
      return kScale * (x > 0 ? x : kAlpha * std::expm1(x));
    case GatedActivation::kLeakyRelu:
      return x > 0 ? x : x / 100;
    case GatedActivation::kSigmoid:
      return sigmoid(x);
    case GatedActivation::kElu:
      return x > 0 ? x : std::expm1(x);
    case GatedActivation::kGelu:
      return x / 2 * std::erfc(-x / std::sqrt(Real(2)));
  }
  return 0;
}

/// d sum(weights * f(x)) / dx by central differences, with an error of some 1e-12.
Reals gradient_of(const std::function<Reals(const Reals&)>& f, Reals x, const Reals& weights) {
  constexpr Real kStep = 1e-6L;
  Reals gradient(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    const Real here = x[i];
    x[i] = here + kStep;
    const Reals above = f(x);
    x[i] = here - kStep;
    const Reals below = f(x);
    x[i] = here;
    for (size_t j = 0; j < weights.size(); ++j) {
      gradient[i] += weights[j] * (above[j] - below[j]) / (2 * kStep);
    }
  }
  return gradient;
}

/// The tolerance in machine epsilons, at least the error of finite differences.
template <class T>
double with_difference_error(double epsilons) {
  return std::max(epsilons, 1e-9 / static_cast<double>(std::numeric_limits<T>::epsilon()));
}

TYPED_TEST(GatedLayers, ActivationsAndTheirDerivativesMatchReference) {
  using T = TypeParam;
  constexpr int64_t kRows = 5, kPeriod = 2, kFirst = 3;
  on_every_isa([](const KernelTable& table, GuardPage guard) {
    for (const GatedActivation kind : kActivations) {
      SCOPED_TRACE(static_cast<int>(kind));
      for (const int64_t width : kWidths) {
        const auto block = normal<T>(kRows * width, 1), shift = normal<T>(kPeriod * width, 2),
                   g = normal<T>(kRows * width, 3), before = normal<T>(kPeriod * width, 4);
        std::vector<double> value(block.size()), slope(block.size()), sums = in_double(before);
        for (int64_t i = 0; i < kRows * width; ++i) {
          const int64_t at = (kFirst + i / width) % kPeriod * width + i % width;
          // The sum is rounded as in the kernel.
          const T x = block[i] + shift[at];
          constexpr Real kStep = 1e-6L;
          value[i] = static_cast<double>(activation(kind, x));
          slope[i] = static_cast<double>(
              g[i] * (activation(kind, x + kStep) - activation(kind, x - kStep)) / (2 * kStep));
          sums[at] += slope[i];
        }
        const Guarded<T> x(block, guard), s(shift, guard), argument(g, guard), gradient(g, guard),
            total(before, guard);
        const LayerKernels<T>& k = layers<T>(table);
        k.activate(kind, x, s, argument, kPeriod, kFirst, kRows, width);
        expect_close("value", x, value, kFewOperations);
        const bool keeps = kind == GatedActivation::kGelu;
        if (!keeps) {
          EXPECT_EQ(argument.values(), g);
        }
        k.activate_backward(kind, gradient, keeps ? argument : x, total, kPeriod, kFirst, kRows,
                            width);
        expect_close("gradient", gradient, slope, with_difference_error<T>(kFewOperations));
        expect_close("sums", total, sums, with_difference_error<T>(kSums));
        const Guarded<T> again(block, guard);
        k.activate(kind, again, s, nullptr, kPeriod, kFirst, kRows, width);
        EXPECT_EQ(again.values(), x.values());
      }
    }
  });
}

TYPED_TEST(GatedLayers, ActivationsAreAccurateForArgumentsOfEveryMagnitude) {
  using T = TypeParam;
  on_every_isa([](const KernelTable& table, GuardPage guard) {
    for (const GatedActivation kind : kActivations) {
      // GELU is accurate to an epsilon of its argument, and softplus to an epsilon of 1, as in
      // torch.
      const bool relative = kind != GatedActivation::kGelu && kind != GatedActivation::kSoftplus;
      std::vector<T> values;
      for (double size = 1e-30; size < 1e3; size *= 1.7) {
        values.push_back(static_cast<T>(size));
        values.push_back(static_cast<T>(-size));
      }
      const auto count = static_cast<int64_t>(values.size());
      const Guarded<T> x(values, guard), zeros(std::vector<T>(values.size()), guard);
      layers<T>(table).activate(kind, x, zeros, nullptr, 1, 0, 1, count);
      for (int64_t i = 0; i < count; ++i) {
        const auto expected = static_cast<double>(activation(kind, values[i]));
        const double unit = relative ? std::abs(expected) : std::max(1.0, std::abs(expected));
        // e^x has an error of |x| epsilons, because its argument is rounded when it is scaled by
        // log2(e). A denormal result may be flushed to 0.
        const double epsilons = 8 + std::abs(static_cast<double>(values[i]));
        const double allowed =
            epsilons * static_cast<double>(std::numeric_limits<T>::epsilon()) * unit +
            static_cast<double>(std::numeric_limits<T>::min());
        EXPECT_NEAR(x[i], expected, allowed) << static_cast<int>(kind) << " of " << values[i];
      }
    }
  });
}

TYPED_TEST(GatedLayers, ActivationsPropagateNaN) {
  using T = TypeParam;
  on_every_isa([](const KernelTable& table, GuardPage guard) {
    for (const GatedActivation kind : kActivations) {
      for (const int64_t width : {1, 40}) {
        std::vector<T> values(width, std::numeric_limits<T>::quiet_NaN());
        const Guarded<T> x(values, guard), zeros(std::vector<T>(values.size()), guard);
        layers<T>(table).activate(kind, x, zeros, nullptr, 1, 0, 1, width);
        for (const T value : x.values()) EXPECT_TRUE(std::isnan(value)) << static_cast<int>(kind);
      }
    }
  });
}

TYPED_TEST(GatedLayers, OnlyDroppedElementsBecomeMinusZero) {
  using T = TypeParam;
  constexpr int64_t kRows = 4;
  on_every_isa([](const KernelTable& table, GuardPage guard) {
    for (const int64_t width : kWidths) {
      auto block = normal<T>(kRows * width, 1), bias = normal<T>(width, 2);
      std::vector<T> factors(block.size());
      for (size_t i = 0; i < factors.size(); ++i) factors[i] = i % 3 == 0 ? T(0) : T(1.25);
      // Some sums are zeros, of either sign.
      for (int64_t c = 0; c < width; c += 2) block[c] = -bias[c];
      if (width > 1) block[1] = T(-0.0), bias[1] = T(-0.0);
      const auto before = normal<T>(width, 4), g = normal<T>(kRows * width, 3);
      const Guarded<T> x(block, guard), b(bias, guard), f(factors, guard), plain(block, guard),
          gradient(g, guard), sums(before, guard);
      layers<T>(table).drop(x, b, f, kRows, width);
      layers<T>(table).drop(plain, b, nullptr, kRows, width);
      layers<T>(table).drop_backward(gradient, x, T(1.25), sums, kRows, width);
      std::vector<double> expected_sums = in_double(before);
      for (int64_t i = 0; i < kRows * width; ++i) {
        const bool dropped = i % 3 == 0;
        const T sum = block[i] + bias[i % width];
        EXPECT_EQ(x[i], dropped ? T(0) : sum * T(1.25));
        EXPECT_EQ(x[i] == 0 && std::signbit(x[i]), dropped);
        EXPECT_EQ(plain[i], sum);
        EXPECT_FALSE(plain[i] == 0 && std::signbit(plain[i]));
        const T kept = dropped ? T(0) : g[i] * T(1.25);
        EXPECT_EQ(gradient[i], kept);
        expected_sums[i % width] += static_cast<double>(kept);
      }
      expect_close("sums", sums, expected_sums, kFewOperations);
    }
  });
}

TYPED_TEST(GatedLayers, OuterRowsMatchReference) {
  using T = TypeParam;
  constexpr int64_t kRows = 3, kStride = 2;
  on_every_isa([](const KernelTable& table, GuardPage guard) {
    for (const int64_t width : kWidths) {
      const auto x = normal<T>((kRows - 1) * kStride + 1, 1), factor = normal<T>(width, 2),
                 shift = normal<T>(width, 3), g = normal<T>(kRows * width, 4),
                 before = normal<T>(2 * width, 5);
      std::vector<double> value(kRows * width), sums = in_double(before), to_x = in_double(x);
      for (int64_t i = 0; i < kRows * width; ++i) {
        const int64_t r = i / width * kStride, c = i % width;
        const double given = g[i];
        value[i] = static_cast<double>(x[r]) * static_cast<double>(factor[c]) +
                   static_cast<double>(shift[c]);
        sums[c] += given * static_cast<double>(x[r]);
        sums[width + c] += given;
        to_x[r] += given * static_cast<double>(factor[c]);
      }
      const Guarded<T> in(x, guard), f(factor, guard), s(shift, guard), out(g, guard),
          gradient(g, guard), of_x(x, guard), total(before, guard);
      layers<T>(table).outer(out, in, kStride, f, s, kRows, width);
      expect_close("value", out, value, kFewOperations);
      layers<T>(table).outer_backward(gradient, in, kStride, f, of_x, kStride, total, kRows, width);
      expect_close("of x", of_x, to_x, kSums);
      expect_close("sums", total, sums, kFewOperations);
    }
  });
}

/// The reference for one row. x = gate [2 w], bias [2 w], skip [w], scale [w], shift [w], factor
/// [1].
Reals gated_norm_row(const Reals& x, int64_t w) {
  Reals row(w);
  const Real *bias = &x[2 * w], *skip = bias + 2 * w, *scale = skip + w, *shift = scale + w;
  Real mean = 0, variance = 0;
  for (int64_t i = 0; i < w; ++i) {
    row[i] = (x[i] + bias[i]) * sigmoid(x[w + i] + bias[w + i]) + skip[i];
    mean += row[i] / w;
  }
  for (const Real value : row) variance += (value - mean) * (value - mean) / w;
  for (int64_t i = 0; i < w; ++i) {
    row[i] = shift[w] * ((row[i] - mean) / std::sqrt(variance + 1e-3L) * scale[i] + shift[i]);
  }
  return row;
}

TYPED_TEST(GatedLayers, GatedNormAndItsGradientsMatchReference) {
  using T = TypeParam;
  constexpr int64_t kRows = 3, kStride = 2;
  for (const int64_t w : {1, 2, 4, 7, 8, 15, 16, 17, 33}) {
    const auto gate = normal<T>(kRows * 2 * w, 1), bias = normal<T>(2 * w, 2),
               skip = normal<T>(kRows * w, 3), scale = normal<T>(w, 4), shift = normal<T>(w, 5),
               factors = normal<T>((kRows - 1) * kStride + 1, 6),
               out_before = normal<T>(kRows * w, 7), g = normal<T>(kRows * w, 8),
               before = normal<T>(4 * w, 9);
    for (const bool scaled : {false, true}) {
      SCOPED_TRACE(::testing::Message() << w << (scaled ? ", factors" : ""));
      std::vector<double> value(kRows * w), to_gate(kRows * 2 * w), to_skip(kRows * w),
          to_factors = in_double(factors), sums = in_double(before);
      for (int64_t r = 0; r < kRows; ++r) {
        Reals x(gate.begin() + r * 2 * w, gate.begin() + (r + 1) * 2 * w);
        x.insert(x.end(), bias.begin(), bias.end());
        x.insert(x.end(), skip.begin() + r * w, skip.begin() + (r + 1) * w);
        x.insert(x.end(), scale.begin(), scale.end());
        x.insert(x.end(), shift.begin(), shift.end());
        x.push_back(scaled ? factors[r * kStride] : T(1));
        const Reals weights(g.begin() + r * w, g.begin() + (r + 1) * w);
        const auto row = [w](const Reals& y) { return gated_norm_row(y, w); };
        const std::vector<double> y = rounded(row(x));
        const std::vector<double> of_x = rounded(gradient_of(row, x, weights));
        for (int64_t i = 0; i < w; ++i) {
          value[r * w + i] = y[i] + (scaled ? static_cast<double>(out_before[r * w + i]) : 0.0);
          to_gate[r * 2 * w + i] = of_x[i], to_gate[r * 2 * w + w + i] = of_x[w + i];
          to_skip[r * w + i] = of_x[4 * w + i];
          sums[i] += of_x[5 * w + i], sums[w + i] += of_x[6 * w + i];
          sums[2 * w + i] += of_x[2 * w + i], sums[3 * w + i] += of_x[3 * w + i];
        }
        to_factors[r * kStride] = of_x[7 * w];
      }
      on_every_isa([&](const KernelTable& table, GuardPage guard) {
        const Guarded<T> a(gate, guard), b(bias, guard), c(skip, guard), s(scale, guard),
            d(shift, guard), f(factors, guard), out(out_before, guard), given(g, guard),
            statistics(std::vector<T>(2 * kRows), guard), scratch(std::vector<T>(w), guard),
            of_gate(gate, guard), of_skip(skip, guard), of_factors(factors, guard),
            total(before, guard);
        const GatedNormParams<T> block = {
            a, b, c, s, d, statistics, scaled ? f.data() : nullptr, kStride, w};
        layers<T>(table).gated_norm(block, out, scratch, kRows);
        expect_close("value", out, value, kSums);
        const GatedNormGradients<T> gradients = {
            given, of_gate, of_skip, scaled ? of_factors.data() : nullptr, kStride, total};
        layers<T>(table).gated_norm_backward(block, gradients, kRows);
        // With one column, the norm divides by sqrt(1e-3), so its derivative is 30.
        const double epsilons = with_difference_error<T>(8 * kSums);
        expect_close("gate", of_gate, to_gate, epsilons);
        expect_close("skip", of_skip, to_skip, epsilons);
        if (scaled) expect_close("factors", of_factors, to_factors, epsilons);
        expect_close("sums", total, sums, epsilons);
      });
    }
  }
}

/// The reference for one column: {cell, hidden} from x = products [4], bias [4], last cell [1].
Reals lstm_column(const Reals& x) {
  const auto argument = [&](int i) { return x[i] + x[4 + i]; };
  const Real cell = sigmoid(argument(1)) * x[8] + sigmoid(argument(0)) * std::tanh(argument(2));
  return {cell, sigmoid(argument(3)) * std::tanh(cell)};
}

TYPED_TEST(GatedLayers, LstmAndItsGradientsMatchReference) {
  using T = TypeParam;
  constexpr int64_t kRows = 3;
  on_every_isa([](const KernelTable& table, GuardPage guard) {
    for (const int64_t w : kWidths) {
      const auto products = normal<T>(kRows * 4 * w, 1), bias = normal<T>(4 * w, 2),
                 last = normal<T>(kRows * w, 3), to_out = normal<T>(kRows * w, 4),
                 to_hidden = normal<T>(kRows * w, 5), to_cell = normal<T>(kRows * w, 6),
                 before = normal<T>(4 * w, 7);
      std::vector<double> cell(kRows * w), hidden(kRows * w), of_cell(kRows * w),
          of_gates(kRows * 4 * w), sums = in_double(before);
      for (int64_t i = 0; i < kRows * w; ++i) {
        const int64_t r = i / w, c = i % w;
        Reals x(9);
        for (int64_t j = 0; j < 4; ++j) {
          x[j] = products[r * 4 * w + j * w + c], x[4 + j] = bias[j * w + c];
        }
        x[8] = last[i];
        const Reals y = lstm_column(x);
        cell[i] = static_cast<double>(y[0]), hidden[i] = static_cast<double>(y[1]);
        const Reals weights = {Real(to_cell[i]), Real(to_out[i]) + to_hidden[i]};
        const Reals of_x = gradient_of(lstm_column, x, weights);
        of_cell[i] = static_cast<double>(of_x[8]);
        for (int64_t j = 0; j < 4; ++j) {
          of_gates[r * 4 * w + j * w + c] = static_cast<double>(of_x[j]);
          sums[j * w + c] += static_cast<double>(of_x[j]);
        }
      }
      const Guarded<T> gates(products, guard), b(bias, guard), old(last, guard), now(last, guard),
          out(last, guard), from_out(to_out, guard), from_next(to_hidden, guard),
          state(to_cell, guard), gate_gradients(products, guard), total(before, guard);
      layers<T>(table).lstm(gates, b, old, now, out, kRows, w);
      expect_close("cell", now, cell, kFewOperations);
      expect_close("hidden", out, hidden, kFewOperations);
      layers<T>(table).lstm_backward(gates, now, old, from_out, from_next, state, gate_gradients,
                                     total, kRows, w);
      expect_close("to cell", state, of_cell, with_difference_error<T>(kFewOperations));
      expect_close("to gates", gate_gradients, of_gates, with_difference_error<T>(kFewOperations));
      expect_close("sums", total, sums, with_difference_error<T>(kSums));
    }
  });
}

}  // namespace
}  // namespace flash
