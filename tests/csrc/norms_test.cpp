// Compares the layer kernels of norms, on every instruction set, with references in double.

#include <cmath>

#include "tests/csrc/layers.h"

namespace flash {
namespace {

using testing::Dtypes;
using testing::expect_close;
using testing::Guarded;
using testing::GuardPage;
using testing::kWidths;
using testing::layers;
using testing::normal;
using testing::on_every_isa;

template <class T>
class Norms : public testing::OnBothDtypes<T> {};
TYPED_TEST_SUITE(Norms, Dtypes);

constexpr int64_t kRows = 5;
// Machine epsilons for sums over up to 200 elements, of products of three values below 4.
constexpr double kSums = 512;

template <class T>
std::vector<double> widened(const std::vector<T>& x) {
  return {x.begin(), x.end()};
}

/// Positive values of order 1.
template <class T>
std::vector<T> positive(int64_t size, uint64_t seed) {
  std::vector<T> x = normal<T>(size, seed);
  for (T& value : x) value = T(0.5) + std::abs(value);
  return x;
}

TYPED_TEST(Norms, LayerNormMatchesReference) {
  using T = TypeParam;
  constexpr double kEpsilon = 1e-3;
  on_every_isa([](const KernelTable& table, GuardPage guard) {
    for (const int64_t w : kWidths) {
      if (w == 0) continue;  // has no mean
      SCOPED_TRACE(w);
      const auto x = normal<T>(kRows * w, 1), weight = normal<T>(w, 2), bias = normal<T>(w, 3);
      std::vector<double> out(kRows * w), means(kRows), reciprocals(kRows);
      for (int64_t r = 0; r < kRows; ++r) {
        const auto columns = static_cast<double>(w);
        double variance = 0;
        for (int64_t c = 0; c < w; ++c) means[r] += static_cast<double>(x[r * w + c]) / columns;
        for (int64_t c = 0; c < w; ++c) {
          const double difference = static_cast<double>(x[r * w + c]) - means[r];
          variance += difference * difference / columns;
        }
        reciprocals[r] = 1 / std::sqrt(variance + kEpsilon);
        for (int64_t c = 0; c < w; ++c) {
          out[r * w + c] =
              (static_cast<double>(x[r * w + c]) - means[r]) * reciprocals[r] * weight[c] + bias[c];
        }
      }
      const Guarded<T> rows(x, guard), weights(weight, guard), biases(bias, guard),
          found(std::vector<T>(kRows * w), guard), mean(std::vector<T>(kRows), guard),
          reciprocal(std::vector<T>(kRows), guard);
      layers<T>(table).layer_norm(rows, weights, biases, static_cast<T>(kEpsilon), kRows, w, found,
                                  mean, reciprocal);
      expect_close("out", found, out, kSums);
      expect_close("mean", mean, means, kSums);
      expect_close("reciprocal", reciprocal, reciprocals, kSums);
    }
  });
}

TYPED_TEST(Norms, AffineSumMatchesReferenceWithAndWithoutItsParts) {
  using T = TypeParam;
  on_every_isa([](const KernelTable& table, GuardPage guard) {
    for (const int64_t w : kWidths) {
      SCOPED_TRACE(w);
      const auto x = normal<T>(kRows * w, 1), residual = normal<T>(kRows * w, 2),
                 factor = normal<T>(w, 3), shift = normal<T>(w, 4);
      for (const bool adds : {false, true}) {
        for (const bool scales : {false, true}) {
          std::vector<double> expected(kRows * w);
          for (int64_t i = 0; i < kRows * w; ++i) {
            const double sum = x[i] + (adds ? static_cast<double>(residual[i]) : 0.0);
            expected[i] = scales ? sum * factor[i % w] + shift[i % w] : sum;
          }
          const Guarded<T> rows(x, guard), added(residual, guard), factors(factor, guard),
              shifts(shift, guard);
          // In place.
          layers<T>(table).affine_sum(rows, adds ? added.data() : nullptr,
                                      scales ? factors.data() : nullptr,
                                      scales ? shifts.data() : nullptr, kRows, w, rows);
          expect_close("out", rows, expected, kSums);
        }
      }
    }
  });
}

TYPED_TEST(Norms, LayerNormBackwardMatchesReference) {
  using T = TypeParam;
  on_every_isa([](const KernelTable& table, GuardPage guard) {
    for (const int64_t w : kWidths) {
      SCOPED_TRACE(w);
      const auto x = normal<T>(kRows * w, 1), g = normal<T>(kRows * w, 2), weight = normal<T>(w, 3),
                 mean = normal<T>(kRows, 4), reciprocal = positive<T>(kRows, 5),
                 before = normal<T>(2 * w, 6);
      std::vector<double> of_x(kRows * w), sums = widened(before);
      for (int64_t r = 0; r < kRows; ++r) {
        const auto normalized = [&](int64_t c) {
          return (static_cast<double>(x[r * w + c]) - mean[r]) * reciprocal[r];
        };
        double sum = 0, product_sum = 0;
        for (int64_t c = 0; c < w; ++c) {
          const double incoming = g[r * w + c];
          sums[c] += incoming * normalized(c), sums[w + c] += incoming;
          sum += incoming * weight[c], product_sum += incoming * weight[c] * normalized(c);
        }
        const auto columns = static_cast<double>(w);
        for (int64_t c = 0; c < w; ++c) {
          of_x[r * w + c] = reciprocal[r] * (static_cast<double>(g[r * w + c]) * weight[c] -
                                             (sum + normalized(c) * product_sum) / columns);
        }
      }
      const Guarded<T> rows(x, guard), given(g, guard), weights(weight, guard), means(mean, guard),
          reciprocals(reciprocal, guard), out(std::vector<T>(kRows * w), guard),
          total(before, guard);
      layers<T>(table).layer_norm_backward({rows, means, reciprocals, weights, kRows, w}, given,
                                           out, total);
      expect_close("x", out, of_x, kSums);
      expect_close("sums", total, sums, kSums);
    }
  });
}

TYPED_TEST(Norms, ColumnMomentsMatchReference) {
  using T = TypeParam;
  on_every_isa([](const KernelTable& table, GuardPage guard) {
    for (const int64_t w : kWidths) {
      SCOPED_TRACE(w);
      const auto x = normal<T>(kRows * w, 1);
      std::vector<double> moments(2 * w);
      for (int64_t c = 0; c < w; ++c) {
        for (int64_t r = 0; r < kRows; ++r) moments[c] += static_cast<double>(x[r * w + c]) / kRows;
        for (int64_t r = 0; r < kRows; ++r) {
          const double difference = static_cast<double>(x[r * w + c]) - moments[c];
          moments[w + c] += difference * difference;
        }
      }
      const Guarded<T> rows(x, guard), found(std::vector<T>(2 * w), guard);
      layers<T>(table).column_moments(rows, kRows, w, found);
      expect_close("moments", found, moments, kSums);
    }
  });
}

TYPED_TEST(Norms, BatchNormBackwardMatchesReference) {
  using T = TypeParam;
  on_every_isa([](const KernelTable& table, GuardPage guard) {
    for (const int64_t w : kWidths) {
      SCOPED_TRACE(w);
      const auto x = normal<T>(kRows * w, 1), g = normal<T>(kRows * w, 2), weight = normal<T>(w, 3),
                 mean = normal<T>(w, 4), reciprocal = positive<T>(w, 5),
                 given = normal<T>(2 * w, 6);
      std::vector<double> sums(2 * w), of_x(kRows * w);
      for (int64_t r = 0; r < kRows; ++r) {
        for (int64_t c = 0; c < w; ++c) {
          const double normalized = (static_cast<double>(x[r * w + c]) - mean[c]) * reciprocal[c];
          const double incoming = g[r * w + c];
          sums[c] += incoming, sums[w + c] += incoming * normalized;
          of_x[r * w + c] = static_cast<double>(reciprocal[c]) * weight[c] *
                            (incoming - given[c] - normalized * given[w + c]);
        }
      }
      const Guarded<T> rows(x, guard), gradient(g, guard), weights(weight, guard),
          columns(mean, guard), reciprocals(reciprocal, guard), means(given, guard),
          found(std::vector<T>(2 * w), guard), out(std::vector<T>(kRows * w), guard);
      const NormRows<T> norm = {rows, columns, reciprocals, weights, kRows, w};
      layers<T>(table).batch_norm_sums(norm, gradient, found);
      layers<T>(table).batch_norm_backward(norm, gradient, means, out);
      expect_close("sums", found, sums, kSums);
      expect_close("x", out, of_x, kSums);
    }
  });
}

}  // namespace
}  // namespace flash
