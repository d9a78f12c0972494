// The kernels of every instruction set against the definition, without Torch.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "tests/csrc/isa.h"
#include "tests/csrc/problem.h"

namespace flash {
namespace {

using testing::Answer;
using testing::Options;
using testing::Problem;
using testing::supported_kernels;

class AttentionOnEveryIsa : public ::testing::TestWithParam<const KernelTable*> {};

const Shape kShapes[] = {
    {1, 1, 1, 1, 1, 1, 1, 1},      {2, 2, 2, 2, 7, 9, 3, 5},      {1, 4, 2, 1, 33, 65, 40, 24},
    {1, 1, 1, 1, 97, 130, 16, 33}, {1, 2, 1, 2, 130, 64, 65, 16}, {1, 1, 1, 1, 257, 200, 8, 8},
};
const Options kOptions[] = {
    {},
    {.causal = true},
    {.bias = true},
    {.dropout = 0.4},
    {.causal = true, .dropout = 0.2, .bias = true, .block_size = 10},
    {.block_size = 1},
    {.left = 5, .right = 20},
    {.left = 0, .right = 0},
    {.causal = true, .left = 40},
    {.block_size = 16, .right = 3},
    {.softcap = 0.8},
    {.slopes = true},
    {.sinks = true},
    {.dropout = 0.2,
     .bias = true,
     .block_size = 24,
     .left = 30,
     .right = 9,
     .softcap = 2,
     .slopes = true,
     .sinks = true},
};

double largest_difference(const std::vector<double>& a, const std::vector<double>& b) {
  EXPECT_EQ(a.size(), b.size());
  double worst = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    worst = std::max(worst, std::isfinite(a[i]) ? std::abs(a[i] - b[i]) : HUGE_VAL);
  }
  return worst;
}

// Sums of up to 257 products of standard normals: their rounding stays under 64 units in the last
// place of a result of size up to 16, forward and backward.
template <class T>
constexpr double kTolerance = 64 * 16 * static_cast<double>(std::numeric_limits<T>::epsilon());

// A row's part of a slope's gradient is a sum of dS times distances of up to 257 keys, of which
// ALiBi leaves weight to the nearest tens: their rounding is that many times that of dS.
template <class T>
constexpr double kSlopeTolerance = 32 * kTolerance<T>;

template <class T>
void expect_reference(const KernelTable& table) {
  for (const Shape& shape : kShapes) {
    for (const Options& options : kOptions) {
      SCOPED_TRACE(::testing::Message()
                   << "queries " << shape.queries << " keys " << shape.keys << " causal "
                   << options.causal << " dropout " << options.dropout << " bias " << options.bias
                   << " block " << options.block_size << " window " << options.left << " "
                   << options.right << " softcap " << options.softcap << " slopes "
                   << options.slopes << " sinks " << options.sinks);
      const Problem<T> problem(shape, options);
      const Answer expected = testing::reference(problem);
      const Answer got = testing::run(table, problem);
      EXPECT_LE(largest_difference(got.out, expected.out), kTolerance<T>);
      EXPECT_LE(largest_difference(got.dq, expected.dq), kTolerance<T>);
      EXPECT_LE(largest_difference(got.dk, expected.dk), kTolerance<T>);
      EXPECT_LE(largest_difference(got.dv, expected.dv), kTolerance<T>);
      EXPECT_LE(largest_difference(got.dbias, expected.dbias), kTolerance<T>);
      EXPECT_LE(largest_difference(got.dslopes, expected.dslopes), kSlopeTolerance<T>);
      EXPECT_LE(largest_difference(got.dsinks, expected.dsinks), kTolerance<T>);
    }
  }
}

TEST_P(AttentionOnEveryIsa, FloatIsTheDefinition) { expect_reference<float>(*GetParam()); }
TEST_P(AttentionOnEveryIsa, DoubleIsTheDefinition) { expect_reference<double>(*GetParam()); }

TEST_P(AttentionOnEveryIsa, GivesTheSameBitsHoweverUnitsAreSpread) {
  const Problem<float> problem({1, 2, 2, 1, 500, 300, 32, 32}, {.causal = true, .dropout = 0.1});
  const Answer together = testing::run(*GetParam(), problem);
  const Answer apart = testing::run(*GetParam(), problem, /*one_by_one=*/true);
  EXPECT_EQ(together.out, apart.out);
  EXPECT_EQ(together.dq, apart.dq);
  EXPECT_EQ(together.dk, apart.dk);
  EXPECT_EQ(together.dv, apart.dv);
}

TEST_P(AttentionOnEveryIsa, QueriesBeforeEveryKeyGetZeros) {
  // Bottom-right: of 5 queries over 2 keys the first 3 attend nothing.
  const Problem<float> problem({1, 1, 1, 1, 5, 2, 4, 4}, {.causal = true});
  const Answer got = testing::run(*GetParam(), problem);
  for (int i = 0; i < 3 * 4; ++i) {
    EXPECT_EQ(got.out[i], 0);
    EXPECT_EQ(got.dq[i], 0);
  }
  EXPECT_NE(got.out[3 * 4], 0);
}

TEST_P(AttentionOnEveryIsa, AMaskedKeysNanReachesNoOtherRow) {
  constexpr int64_t kLength = 60, kWidth = 8, kBad = 40;
  Problem<float> problem({1, 1, 1, 1, kLength, kLength, kWidth, kWidth}, {.causal = true});
  const Answer clean = testing::run(*GetParam(), problem);
  for (int64_t d = 0; d < kWidth; ++d) {
    problem.k[kBad * kWidth + d] = problem.v[kBad * kWidth + d] = std::nanf("");
  }
  const Answer got = testing::run(*GetParam(), problem);
  for (int64_t i = 0; i < kLength; ++i) {
    for (int64_t d = 0; d < kWidth; ++d) {
      const int64_t at = i * kWidth + d;
      if (i < kBad) {
        EXPECT_NEAR(got.out[at], clean.out[at], kTolerance<float>) << i;
        EXPECT_NEAR(got.dq[at], clean.dq[at], kTolerance<float>) << i;
      } else {
        EXPECT_TRUE(std::isnan(got.out[at])) << i;
        EXPECT_TRUE(std::isnan(got.dq[at])) << i;
      }
    }
  }
}

TEST_P(AttentionOnEveryIsa, ANanOutsideOfTheWindowReachesNoRow) {
  constexpr int64_t kLength = 150, kWidth = 8, kBad = 70, kLeft = 9, kRight = 4;
  const Options options = {
      .left = kLeft, .right = kRight, .softcap = 3, .slopes = true, .sinks = true};
  Problem<float> problem({1, 1, 1, 1, kLength, kLength, kWidth, kWidth}, options);
  const Answer clean = testing::run(*GetParam(), problem);
  for (int64_t d = 0; d < kWidth; ++d) {
    problem.k[kBad * kWidth + d] = problem.v[kBad * kWidth + d] = std::nanf("");
  }
  const Answer got = testing::run(*GetParam(), problem);
  for (int64_t i = 0; i < kLength; ++i) {
    const bool attends = i - kLeft <= kBad && kBad <= i + kRight;
    for (int64_t d = 0; d < kWidth; ++d) {
      const int64_t at = i * kWidth + d;
      if (attends) {
        EXPECT_TRUE(std::isnan(got.out[at])) << i;
        EXPECT_TRUE(std::isnan(got.dq[at])) << i;
      } else {
        EXPECT_NEAR(got.out[at], clean.out[at], kTolerance<float>) << i;
        EXPECT_NEAR(got.dq[at], clean.dq[at], kTolerance<float>) << i;
      }
    }
    EXPECT_EQ(std::isnan(got.dslopes[i]), attends) << i;
  }
}

// Positions and windows may be any numbers: none may overflow on the way to a range of keys.
TEST_P(AttentionOnEveryIsa, WindowsAndPositionsOfAnySize) {
  constexpr int64_t kLargest = std::numeric_limits<int64_t>::max();
  const Shape shape = {1, 1, 1, 1, 40, 50, 8, 8};
  const Answer everything = testing::run(*GetParam(), Problem<double>(shape, {}));
  for (const int64_t huge : {int64_t{50}, int64_t{1} << 62, kLargest}) {
    for (const Options& options :
         {Options{.left = huge}, Options{.right = huge}, Options{.left = huge, .right = huge}}) {
      const Answer got = testing::run(*GetParam(), Problem<double>(shape, options));
      EXPECT_LE(largest_difference(got.out, everything.out), kTolerance<double>) << huge;
      EXPECT_LE(largest_difference(got.dk, everything.dk), kTolerance<double>) << huge;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Isa, AttentionOnEveryIsa, ::testing::ValuesIn(supported_kernels()),
                         [](const auto& info) { return std::string(info.param->name); });

}  // namespace
}  // namespace flash
