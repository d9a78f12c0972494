// NaN and Inf in the inputs: where they must propagate, and where they must not.

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "tests/csrc/isa.h"
#include "tests/csrc/run.h"

namespace flash {
namespace {

using testing::Answer;
using testing::Options;
using testing::Problem;
using testing::supported_kernels;

class NonFiniteOnEveryIsa : public ::testing::TestWithParam<const KernelTable*> {};

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInf = std::numeric_limits<double>::infinity();

// For sums over up to 150 keys.
template <class T>
constexpr double kTolerance = 64 * 16 * static_cast<double>(std::numeric_limits<T>::epsilon());

// `any_kind`: whether Inf and NaN count as equal.
void expect_same(const std::vector<double>& got, const std::vector<double>& expected,
                 double tolerance, const char* name, bool any_kind) {
  ASSERT_EQ(got.size(), expected.size());
  for (size_t i = 0; i < got.size(); ++i) {
    if (any_kind && !std::isfinite(expected[i])) {
      ASSERT_FALSE(std::isfinite(got[i])) << name << "[" << i << "] = " << got[i];
    } else if (std::isnan(expected[i])) {
      ASSERT_TRUE(std::isnan(got[i])) << name << "[" << i << "] = " << got[i];
    } else if (std::isinf(expected[i])) {
      ASSERT_EQ(got[i], expected[i]) << name << "[" << i << "]";
    } else {
      ASSERT_NEAR(got[i], expected[i], tolerance) << name << "[" << i << "]";
    }
  }
}

const Shape kShapes[] = {
    {1, 1, 1, 1, 60, 60, 8, 8},    {1, 2, 1, 2, 33, 70, 24, 40},
    {1, 1, 1, 1, 130, 150, 17, 9}, {1, 1, 1, 1, 3, 100, 16, 33},  // decode
    {1, 1, 1, 1, 3, 150, 64, 128},  // decode, rows read in two streams
};
const Options kMasks[] = {
    {.causal = true},
    {.left = 9, .right = 4},
    {.causal = true, .block_size = 16},
    {.causal = true, .dropout = 0.3},
    {.left = 20, .right = 3, .softcap = 3, .slopes = true, .sinks = 1},
    {.bias = BiasKind::kBoolean},
};

enum class Input { kQuery, kKey, kValue, kGradOut };

// Masked pairs contribute nothing, whatever their values are; all others contribute. Two cases are
// unspecified: whether a NaN weight that dropout drops is 0 or NaN, and whether an infinite
// gradient gives Inf or NaN, which depends on the order in which delta is summed.
template <class T>
void expect_matches_reference(const KernelTable& table, Input input, double bad) {
  for (const Shape& shape : kShapes) {
    for (const Options& options : kMasks) {
      const bool is_weight = input == Input::kQuery || input == Input::kKey;
      if (is_weight && options.dropout > 0) continue;
      Problem<T> problem(shape, options);
      std::vector<T>& x = input == Input::kQuery   ? problem.q
                          : input == Input::kKey   ? problem.k
                          : input == Input::kValue ? problem.v
                                                   : problem.grad_out;
      x[x.size() / 2] = x[x.size() / 3] = static_cast<T>(bad);
      SCOPED_TRACE(::testing::Message()
                   << "queries " << shape.queries << " causal " << options.causal << " left "
                   << options.left << " dropout " << options.dropout << " bad " << bad << " input "
                   << static_cast<int>(input));
      const bool any_kind = input == Input::kGradOut && std::isinf(bad);
      const Answer expected = testing::reference(problem);
      const Answer got = testing::run(table, problem);
      expect_same(got.out, expected.out, kTolerance<T>, "out", any_kind);
      expect_same(got.dv, expected.dv, kTolerance<T>, "dv", any_kind);
      expect_same(got.dq, expected.dq, kTolerance<T>, "dq", any_kind);
      expect_same(got.dk, expected.dk, kTolerance<T>, "dk", any_kind);
      if (::testing::Test::HasFatalFailure()) return;
    }
  }
}

TEST_P(NonFiniteOnEveryIsa, NanQuery) {
  expect_matches_reference<float>(*GetParam(), Input::kQuery, kNan);
  expect_matches_reference<double>(*GetParam(), Input::kQuery, kNan);
}
TEST_P(NonFiniteOnEveryIsa, NanKey) {
  expect_matches_reference<float>(*GetParam(), Input::kKey, kNan);
  expect_matches_reference<double>(*GetParam(), Input::kKey, kNan);
}
TEST_P(NonFiniteOnEveryIsa, NanValue) {
  expect_matches_reference<float>(*GetParam(), Input::kValue, kNan);
  expect_matches_reference<double>(*GetParam(), Input::kValue, kNan);
}
TEST_P(NonFiniteOnEveryIsa, NanGradient) {
  expect_matches_reference<float>(*GetParam(), Input::kGradOut, kNan);
  expect_matches_reference<double>(*GetParam(), Input::kGradOut, kNan);
}
TEST_P(NonFiniteOnEveryIsa, InfiniteValue) {
  expect_matches_reference<float>(*GetParam(), Input::kValue, kInf);
  expect_matches_reference<double>(*GetParam(), Input::kValue, -kInf);
}
TEST_P(NonFiniteOnEveryIsa, InfiniteGradient) {
  expect_matches_reference<float>(*GetParam(), Input::kGradOut, kInf);
  expect_matches_reference<double>(*GetParam(), Input::kGradOut, -kInf);
}

// The softmax of scores that are all -inf is NaN, unlike a row that attends no key, which gives 0.
TEST_P(NonFiniteOnEveryIsa, RowsWithOnlyMinusInfinityScoresAreNaN) {
  for (const int64_t queries : {3, 60}) {
    Problem<float> problem({1, 1, 1, 1, queries, 70, 8, 8}, {});
    for (float& x : problem.k) x = std::abs(x) + 1;
    for (int64_t d = 0; d < 8; ++d) problem.q[8 + d] = -std::numeric_limits<float>::infinity();
    const Answer got = testing::run(*GetParam(), problem);
    for (int64_t d = 0; d < 8; ++d) {
      EXPECT_TRUE(std::isfinite(got.out[d])) << d;
      EXPECT_TRUE(std::isnan(got.out[8 + d])) << d;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Isa, NonFiniteOnEveryIsa, ::testing::ValuesIn(supported_kernels()),
                         [](const auto& info) { return std::string(info.param->name); });

}  // namespace
}  // namespace flash
