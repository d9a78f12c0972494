// Compares linear layers on a few rows, on every instruction set, with a reference in double.

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
class LinearRowsKernel : public testing::OnBothDtypes<T> {};
TYPED_TEST_SUITE(LinearRowsKernel, Dtypes);

// Machine epsilons for sums of up to 1,100 products of values below 4.
constexpr double kSums = 4096;
constexpr int64_t kGap = 3;  ///< elements between two rows of x, weight and out

struct Sizes {
  int64_t rows, columns, depth;
};

/// A matrix with gaps between its rows, but not after the last.
template <class T>
std::vector<T> matrix(int64_t rows, int64_t columns, uint64_t seed) {
  return normal<T>(std::max<int64_t>(0, rows * (columns + kGap) - kGap), seed);
}

/// The elements of out, and of the gaps between its rows what was there before.
template <class T>
std::vector<double> reference(const Sizes& s, const std::vector<T>& x, const std::vector<T>& weight,
                              const std::vector<T>& bias, const std::vector<T>& before) {
  std::vector<double> out(before.begin(), before.end());
  for (int64_t r = 0; r < s.rows; ++r) {
    for (int64_t c = 0; c < s.columns; ++c) {
      double sum = bias.empty() ? 0.0 : static_cast<double>(bias[c]);
      for (int64_t n = 0; n < s.depth; ++n) {
        sum += static_cast<double>(x[r * (s.depth + kGap) + n]) * weight[c * (s.depth + kGap) + n];
      }
      out[r * (s.columns + kGap) + c] = sum;
    }
  }
  return out;
}

TYPED_TEST(LinearRowsKernel, MatchesReference) {
  using T = TypeParam;
  std::vector<Sizes> shapes = {{1, 1, 1},
                               {2, 3, 19},
                               {3, 4, 16},
                               {5, 9, 33},
                               {6, 130, 64},
                               {7, 5, 200},
                               {13, 37, 40},
                               {0, 4, 8},
                               // Several blocks of terms, and a weight beyond the caches.
                               {5, 6, 1100},
                               {7, 270, 530}};
  for (const int64_t depth : kWidths) shapes.push_back({4, 6, depth});
  for (const Sizes& s : shapes) {
    SCOPED_TRACE(::testing::Message() << s.rows << " x " << s.columns << " x " << s.depth);
    const auto x = matrix<T>(s.rows, s.depth, 1), weight = matrix<T>(s.columns, s.depth, 2),
               before = matrix<T>(s.rows, s.columns, 3);
    for (const bool has_bias : {true, false}) {
      const auto bias = has_bias ? normal<T>(s.columns, 4) : std::vector<T>();
      const std::vector<double> expected = reference(s, x, weight, bias, before);
      on_every_isa([&](const KernelTable& table, GuardPage guard) {
        const Guarded<T> rows(x, guard), weights(weight, guard), biases(bias, guard),
            out(before, guard);
        layers<T>(table).linear_rows({.x = rows,
                                      .x_row = s.depth + kGap,
                                      .weight = weights,
                                      .weight_row = s.depth + kGap,
                                      .bias = has_bias ? biases.data() : nullptr,
                                      .out = out,
                                      .out_row = s.columns + kGap,
                                      .rows = s.rows,
                                      .columns = s.columns,
                                      .depth = s.depth});
        expect_close("out", out, expected, kSums);
      });
    }
  }
}

TYPED_TEST(LinearRowsKernel, AnElementHasTheSameBitsInAnyPartOfTheResult) {
  using T = TypeParam;
  constexpr int64_t kRows = 14, kColumns = 11, kDepth = 650;
  const auto x = normal<T>(kRows * kDepth, 1), weight = normal<T>(kColumns * kDepth, 2),
             bias = normal<T>(kColumns, 3);
  on_every_isa([&](const KernelTable& table, GuardPage) {
    const auto compute = [&](int64_t row, int64_t rows, int64_t column, int64_t columns, T* out) {
      layers<T>(table).linear_rows({.x = x.data() + row * kDepth,
                                    .x_row = kDepth,
                                    .weight = weight.data() + column * kDepth,
                                    .weight_row = kDepth,
                                    .bias = bias.data() + column,
                                    .out = out,
                                    .out_row = columns,
                                    .rows = rows,
                                    .columns = columns,
                                    .depth = kDepth});
    };
    std::vector<T> whole(kRows * kColumns);
    compute(0, kRows, 0, kColumns, whole.data());
    for (int64_t r = 0; r < kRows; ++r) {
      for (int64_t c = 0; c < kColumns; ++c) {
        T alone = 0;
        compute(r, 1, c, 1, &alone);
        ASSERT_EQ(alone, whole[r * kColumns + c]) << r << ", " << c;
      }
    }
  });
}

}  // namespace
}  // namespace flash
