// Compares the layer kernels on series and spectra, on every instruction set, with references in
// double.

#include <complex>

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

template <class T>
class SeriesLayers : public testing::OnBothDtypes<T> {};
TYPED_TEST_SUITE(SeriesLayers, Dtypes);

// Machine epsilons for sums of up to 130 products of standard normal values, which stay below 64;
// each operation rounds the sum once.
constexpr double kSums = 256;
// Machine epsilons for a few operations per element.
constexpr double kFewOperations = 16;

TYPED_TEST(SeriesLayers, BlockProductMatchesReference) {
  using T = TypeParam;
  struct Sizes {
    int64_t rows, depth;
  };
  on_every_isa([](const KernelTable& table, GuardPage guard) {
    for (const Sizes s : {Sizes{1, 1}, {5, 0}, {7, 3}, {13, 130}, {33, 8}, {0, 4}}) {
      for (const int64_t columns : kWidths) {
        for (const bool transposed : {false, true}) {
          for (const bool add : {false, true}) {
            const auto a = normal<T>(s.rows * s.depth, 1), b = normal<T>(s.depth * columns, 2),
                       before = normal<T>(s.rows * columns, 3);
            const Guarded<T> left(a, guard), right(b, guard), out(before, guard);
            ProductParams p = {};
            p.left = left.data(), p.right = right.data(), p.out = out.data();
            p.left_row = transposed ? 1 : s.depth, p.left_step = transposed ? s.rows : 1;
            p.right_row = columns, p.right_column = 1, p.out_row = columns;
            p.rows = s.rows, p.depth = s.depth, p.columns = columns, p.add = add;
            layers<T>(table).block_product(p);
            std::vector<double> expected(before.size());
            for (int64_t r = 0; r < s.rows; ++r) {
              for (int64_t c = 0; c < columns; ++c) {
                double sum = add ? static_cast<double>(before[r * columns + c]) : 0.0;
                for (int64_t n = 0; n < s.depth; ++n) {
                  sum += static_cast<double>(a[r * p.left_row + n * p.left_step]) *
                         static_cast<double>(b[n * columns + c]);
                }
                expected[r * columns + c] = sum;
              }
            }
            expect_close("product", out, expected, kSums);
          }
        }
      }
    }
  });
}

TYPED_TEST(SeriesLayers, ComplexTanhAndItsGradientMatchReference) {
  using T = TypeParam;
  on_every_isa([](const KernelTable& table, GuardPage guard) {
    for (const int64_t count : kWidths) {
      std::vector<T> in = normal<T>(2 * count, 1);
      for (int64_t i = 0; i < count; ++i) {
        constexpr double kScales[] = {1e-6, 0.1, 1, 8, 40};
        in[i] *= static_cast<T>(kScales[i % 5]);
        in[count + i] *= static_cast<T>(kScales[(i / 5) % 5]);
        // Avoid poles, where the function is ill-conditioned.
        if (std::abs(in[i]) < 0.5 && std::abs(std::cos(in[count + i])) < 0.5) in[i] = T(0.75);
      }
      const auto gradient = normal<T>(2 * count, 2);
      std::vector<double> expected(2 * count), expected_gradient(2 * count);
      for (int64_t i = 0; i < count; ++i) {
        const std::complex<double> z(in[i], in[count + i]), value = std::tanh(z);
        const std::complex<double> g(gradient[i], gradient[count + i]);
        const std::complex<double> product = g * std::conj(1.0 - value * value);
        expected[i] = value.real(), expected[count + i] = value.imag();
        expected_gradient[i] = product.real(), expected_gradient[count + i] = product.imag();
      }
      const Guarded<T> given(in, guard), result(in, guard), incoming(gradient, guard);
      const Guarded<T> in_place(in, guard), out(in, guard);
      layers<T>(table).complex_tanh(given, result, count);
      expect_close("tanh", result, expected, kFewOperations);
      layers<T>(table).complex_tanh(in_place, in_place, count);
      EXPECT_EQ(in_place.values(), result.values());
      layers<T>(table).complex_tanh_backward(result, incoming, out, count);
      expect_close("gradient", out, expected_gradient, 4 * kFewOperations);
      layers<T>(table).complex_tanh_backward(result, incoming, incoming, count);
      EXPECT_EQ(incoming.values(), out.values());
    }
  });
}

TYPED_TEST(SeriesLayers, ComplexTanhPropagatesNaNAndTheSignOfInfinity) {
  using T = TypeParam;
  constexpr T kInfinity = std::numeric_limits<T>::infinity();
  constexpr T kNaN = std::numeric_limits<T>::quiet_NaN();
  on_every_isa([](const KernelTable& table, GuardPage guard) {
    const Guarded<T> in({kNaN, T(1), kInfinity, -kInfinity, T(1), kNaN, T(1), T(1)}, guard);
    const Guarded<T> out(std::vector<T>(8), guard);
    layers<T>(table).complex_tanh(in, out, 4);
    const std::vector<T> values = out.values();
    EXPECT_TRUE(std::isnan(values[0]) && std::isnan(values[1]));
    const double epsilon = static_cast<double>(std::numeric_limits<T>::epsilon());
    EXPECT_NEAR(values[2], 1, 2 * epsilon);
    EXPECT_NEAR(values[3], -1, 2 * epsilon);
  });
}

TYPED_TEST(SeriesLayers, DecompositionAndItsGradientMatchReference) {
  using T = TypeParam;
  on_every_isa([](const KernelTable& table, GuardPage guard) {
    for (const int64_t channels : {1, 3, 4, 5, 15, 16, 17, 63, 64, 65, 130}) {
      for (const SeriesShape s : {SeriesShape{1, channels, 0},
                                  {1, channels, 3},
                                  {2, channels, 1},
                                  {7, channels, 3},
                                  {9, channels, 12},
                                  {30, channels, 2}}) {
        SCOPED_TRACE(::testing::Message() << s.times << " x " << channels << ", " << s.reach);
        const int64_t count = s.times * channels;
        const auto x = normal<T>(count, 1), before = normal<T>(count, 2), g = normal<T>(count, 3),
                   h = normal<T>(count, 4);
        std::vector<double> average(count), adjoint(count), adjoint_of_seasonal(count);
        const double factor = 1.0 / static_cast<double>(2 * s.reach + 1);
        // Both sides sum in double, up to 25 rows of weight up to 12.
        constexpr double kEpsilons = 4 * kFewOperations;
        for (int64_t t = 0; t < s.times; ++t) {
          for (int64_t offset = -s.reach; offset <= s.reach; ++offset) {
            const int64_t from = std::clamp<int64_t>(t + offset, 0, s.times - 1);
            for (int64_t c = 0; c < channels; ++c) {
              const int64_t at = t * channels + c, source = from * channels + c;
              average[at] += factor * static_cast<double>(x[source]);
              const double of_seasonal = static_cast<double>(g[at]), of_trend = h[at];
              adjoint[source] += factor * (of_trend - of_seasonal);
              adjoint_of_seasonal[source] -= factor * of_seasonal;
            }
          }
        }
        std::vector<double> seasonal = in_double(x), trend = average, sum = in_double(before);
        for (int64_t i = 0; i < count; ++i) {
          seasonal[i] -= average[i];
          sum[i] += average[i];
          adjoint[i] += static_cast<double>(g[i]);
          adjoint_of_seasonal[i] += static_cast<double>(g[i]);
        }
        const LayerKernels<T>& k = layers<T>(table);
        const Guarded<T> in(x, guard), old(before, guard), of_seasonal(g, guard),
            of_trend(h, guard);
        for (const T* trend_before : {static_cast<T*>(nullptr), old.data()}) {
          const Guarded<T> rest(g, guard), smooth(g, guard);
          k.decompose(s, in, trend_before, rest, smooth);
          expect_close("seasonal", rest, seasonal, kEpsilons);
          expect_close("trend", smooth, trend_before == nullptr ? trend : sum, kEpsilons);
        }
        const Guarded<T> rest(g, guard), result(h, guard), result_of_seasonal(h, guard);
        k.decompose(s, in, nullptr, rest, nullptr);
        expect_close("seasonal alone", rest, seasonal, kEpsilons);
        k.decompose_backward(s, of_seasonal, of_trend, result);
        expect_close("gradient", result, adjoint, kEpsilons);
        k.decompose_backward(s, of_seasonal, nullptr, result_of_seasonal);
        expect_close("gradient of seasonal", result_of_seasonal, adjoint_of_seasonal, kEpsilons);
      }
    }
  });
}

TYPED_TEST(SeriesLayers, PoolingChoosesTheFirstMaximumAndPropagatesNaN) {
  using T = TypeParam;
  on_every_isa([](const KernelTable& table, GuardPage guard) {
    for (const int64_t width : kWidths) {
      for (const int64_t steps : {1, 2, 3, 4, 9}) {
        std::vector<T> x = normal<T>(steps * width, 1);
        // Few distinct values, so that there are ties, and some NaN.
        for (T& value : x) value = std::round(value);
        for (size_t i = 0; i < x.size(); i += 11) x[i] = std::numeric_limits<T>::quiet_NaN();
        const int64_t halved = (steps + 1) / 2;
        const auto gradient = normal<T>(halved * width, 2);
        std::vector<uint8_t> expected_which(halved * width);
        std::vector<T> expected(halved * width);
        std::vector<double> expected_gradient(steps * width);
        for (int64_t t = 0; t < halved; ++t) {
          for (int64_t c = 0; c < width; ++c) {
            int64_t best = -1;
            for (int64_t s = std::max<int64_t>(0, 2 * t - 1); s <= std::min(steps - 1, 2 * t + 1);
                 ++s) {
              const T value = x[s * width + c];
              const bool wins = best < 0 || value > x[best * width + c] || std::isnan(value);
              if (wins) best = s;
            }
            expected[t * width + c] = x[best * width + c];
            expected_which[t * width + c] = static_cast<uint8_t>(best - (2 * t - 1));
            expected_gradient[best * width + c] += static_cast<double>(gradient[t * width + c]);
          }
        }
        const Guarded<T> in(x, guard), out(gradient, guard), given(gradient, guard),
            x_gradient(x, guard);
        const Guarded<uint8_t> which(std::vector<uint8_t>(halved * width, 7), guard);
        layers<T>(table).halve_by_maximum(in, out, which, steps, width);
        ASSERT_EQ(which.values(), expected_which);
        for (int64_t i = 0; i < halved * width; ++i) {
          ASSERT_TRUE(out[i] == expected[i] || (std::isnan(out[i]) && std::isnan(expected[i])));
        }
        layers<T>(table).halve_by_maximum_backward(given, which, x_gradient, steps, width);
        expect_close("gradient", x_gradient, expected_gradient, 1);
      }
    }
  });
}

TYPED_TEST(SeriesLayers, FoldingsAndTheirAdjointsMatchReference) {
  using T = TypeParam;
  on_every_isa([](const KernelTable& table, GuardPage guard) {
    const LayerKernels<T>& k = layers<T>(table);
    for (const int64_t channels : kWidths) {
      for (const int64_t times : {1, 2, 3, 4, 7, 34, 35}) {
        SCOPED_TRACE(::testing::Message() << times << " x " << channels);
        const int64_t steps = times / 2 + 1, row = channels + 3, long_row = steps + 2;
        const auto x = normal<T>(times * channels, 1);
        const auto s = normal<T>(steps * row, 2), d = normal<T>(steps * row, 3);
        std::vector<double> sums = in_double(s), differences = in_double(d), back(x.size());
        std::vector<T> transposed(x.size());
        std::vector<T> long_s(channels * long_row), long_d(channels * long_row);
        std::vector<double> back_transposed(x.size());
        for (int64_t c = 0; c < channels; ++c) {
          for (int64_t t = 0; t < times; ++t) transposed[c * times + t] = x[t * channels + c];
          for (int64_t t = 0; t < steps; ++t) {
            const int64_t mirror = (times - t) % times, at = t * row + c;
            const bool once = mirror == t;
            const double here = x[t * channels + c], there = x[mirror * channels + c];
            sums[at] = once ? here : here + there;
            differences[at] = once ? 0 : here - there;
            const double sum = s[at], difference = once ? 0.0 : static_cast<double>(d[at]);
            back[t * channels + c] = sum + difference;
            if (!once) back[mirror * channels + c] = sum - difference;
            long_s[c * long_row + t] = s[at], long_d[c * long_row + t] = d[at];
          }
          for (int64_t t = 0; t < times; ++t)
            back_transposed[c * times + t] = back[t * channels + c];
        }
        const FoldedShape shape = {times, channels, row}, long_shape = {times, channels, long_row};
        const Guarded<T> in(x, guard), in_transposed(transposed, guard);
        {
          const Guarded<T> sum(s, guard), difference(d, guard);
          k.fold(shape, in, sum, difference);
          expect_close("sums", sum, sums, 1);
          expect_close("differences", difference, differences, 1);
        }
        {
          const Guarded<T> sum(s, guard), difference(d, guard);
          k.fold_transposed(shape, in_transposed, sum, difference);
          expect_close("sums of transposed", sum, sums, 1);
          expect_close("differences of transposed", difference, differences, 1);
        }
        const Guarded<T> sum(s, guard), difference(d, guard), out(x, guard), out_rows(x, guard);
        k.unfold(shape, sum, difference, out);
        expect_close("unfolded", out, back, 1);
        const Guarded<T> long_sum(long_s, guard), long_difference(long_d, guard);
        k.unfold_rows(long_shape, long_sum, long_difference, out_rows);
        expect_close("unfolded rows", out_rows, back_transposed, 1);
      }
    }
  });
}

TYPED_TEST(SeriesLayers, CrossSpectrumMatchesReference) {
  using T = TypeParam;
  on_every_isa([](const KernelTable& table, GuardPage guard) {
    for (const int64_t frequencies : kWidths) {
      for (const int64_t channels : {0, 1, 6}) {
        const auto q = normal<T>(2 * channels * frequencies, 1), key = normal<T>(q.size(), 2),
                   before = normal<T>(2 * frequencies, 3);
        std::vector<double> expected = in_double(before);
        for (int64_t i = 0; i < channels * frequencies; ++i) {
          const std::complex<double> a(q[2 * i], q[2 * i + 1]), b(key[2 * i], key[2 * i + 1]);
          const std::complex<double> product = a * std::conj(b);
          expected[2 * (i % frequencies)] += product.real();
          expected[2 * (i % frequencies) + 1] += product.imag();
        }
        const Guarded<T> left(q, guard), right(key, guard), sum(before, guard);
        layers<T>(table).add_cross_spectrum(left, right, sum, channels, frequencies);
        expect_close("sum", sum, expected, 4 * kFewOperations);
      }
    }
  });
}

TYPED_TEST(SeriesLayers, RunningSumsMatchReference) {
  using T = TypeParam;
  on_every_isa([](const KernelTable& table, GuardPage guard) {
    for (const int64_t width : kWidths) {
      for (const int64_t length : {1, 2, 30}) {
        // Rows of `value` have gaps between them; there is no gap after the last.
        const int64_t step = width + 3, strided = (length - 1) * step + width;
        const auto value = normal<T>(strided, 1), gradient = normal<T>(length * width, 2);
        std::vector<double> sums(length * width), gradients = in_double(value);
        std::vector<uint8_t> flags(length);
        for (int64_t t = 0; t < length; ++t) flags[t] = t % 3 == 1;
        for (int64_t c = 0; c < width; ++c) {
          double sum = 0, gradient_sum = 0;
          for (int64_t t = 0; t < length; ++t) {
            sums[t * width + c] = sum += static_cast<double>(value[t * step + c]);
          }
          for (int64_t t = length - 1; t >= 0; --t) {
            if (flags[t] == 0) gradient_sum += static_cast<double>(gradient[t * width + c]);
            gradients[t * step + c] = gradient_sum;
          }
        }
        const Guarded<T> in(value, guard), out(gradient, guard), given(gradient, guard),
            of_value(value, guard);
        const Guarded<uint8_t> skipped(flags, guard);
        layers<T>(table).running_sum(in, step, out, length, width);
        expect_close("sums", out, sums, 4 * kFewOperations);
        layers<T>(table).running_sum_backward(given, reinterpret_cast<const bool*>(skipped.data()),
                                              of_value, step, length, width);
        expect_close("gradients", of_value, gradients, 4 * kFewOperations);
      }
    }
  });
}

}  // namespace
}  // namespace flash
