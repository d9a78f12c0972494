// float on matrix tiles as sums of bfloat16 parts: on those of this CPU, if it has any, and on
// emulated ones.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <tuple>
#include <vector>

#include "tests/csrc/every_option.h"
#include "tests/csrc/expect_close.h"
#include "tests/csrc/isa.h"
#include "tests/csrc/run.h"

namespace flash {
namespace {

using testing::Answer;
using testing::Memory;
using testing::Options;
using testing::Place;
using testing::Problem;

constexpr double kEpsilon = std::numeric_limits<float>::epsilon();

// Relative to the largest element of a tensor. Three parts hold a float, and must be as accurate as
// the micro-kernel; the largest error over these shapes and options is 8 units, as it is there. Two
// leave up to 2^-17 of each element, and their products leave out one of 2^-16; the largest error
// is 1.3e-5 of an output and 2.7e-5 of a gradient, in which differences cancel.
double tolerance(int parts) { return parts == 3 ? testing::kUnits * kEpsilon : 0x1p-14; }

class TileParts : public ::testing::TestWithParam<std::tuple<const KernelTable*, int>> {
 protected:
  const KernelTable& table() const { return *std::get<0>(GetParam()); }
  int parts() const { return std::get<1>(GetParam()); }
  Answer run(const Problem<float>& problem) const { return testing::run(table(), problem); }

  // The same on the micro-kernel.
  Answer run_without_parts(Problem<float> problem) const {
    problem.options.float_parts = 0;
    return testing::run(table(), problem);
  }

  void expect_matches_reference(const Problem<float>& problem) const {
    SCOPED_TRACE(testing::describe(problem.shape, problem.options));
    const Answer got = run(problem), expected = testing::reference(problem);
    const double units = tolerance(parts()) / kEpsilon;
    const auto expect = [&](const char* name, const auto& a, const auto& b, double factor = 1) {
      testing::expect_close<float>(name, a, b, factor * units, Storage::kNative);
    };
    expect("out", got.out, expected.out);
    expect("lse", got.lse, expected.lse);
    expect("dq", got.dq, expected.dq);
    expect("dk", got.dk, expected.dk);
    expect("dv", got.dv, expected.dv);
    expect("dbias", got.dbias, expected.dbias);
    expect("dslopes", got.dslopes, expected.dslopes, testing::kSlopeUnits / testing::kUnits);
    expect("dsinks", got.dsinks, expected.dsinks);
  }
};

TEST_P(TileParts, MatchTheReferenceWithEveryOption) {
  const Shape shapes[] = {
      {1, 1, 1, 1, 1, 1, 1, 1}, {2, 2, 2, 2, 7, 9, 3, 5}, {1, 2, 2, 1, 33, 65, 40, 24}};
  for (const Shape& shape : shapes) {
    for (Options options : testing::kEveryOption) {
      options.float_parts = parts();
      expect_matches_reference({shape, options});
    }
  }
}

TEST_P(TileParts, MatchTheReferenceOverSeveralBlocks) {
  expect_matches_reference({{1, 1, 1, 1, 270, 150, 16, 33}, {.float_parts = parts()}});
  expect_matches_reference(
      {{1, 2, 1, 2, 70, 290, 65, 16}, {.causal = true, .float_parts = parts()}});
}

// Without this, the tests of NaN and of tolerances would hold for the micro-kernel, too.
TEST_P(TileParts, AreUsed) {
  const Problem<float> problem({1, 1, 1, 1, 40, 40, 16, 16}, {.float_parts = parts()});
  const Answer got = run(problem), other = run_without_parts(problem);
  EXPECT_NE(got.out, other.out);
  EXPECT_NE(got.dq, other.dq);
  EXPECT_NE(got.dk, other.dk);
  EXPECT_NE(got.dv, other.dv);
}

TEST_P(TileParts, ResultsDoNotDependOnHowUnitsAreDistributed) {
  const Problem<float> problem({1, 2, 2, 1, 100, 90, 32, 20},
                               {.causal = true, .dropout = 0.1, .float_parts = parts()});
  const Answer together = run(problem);
  const Answer apart = testing::run(table(), problem, /*one_by_one=*/true);
  EXPECT_EQ(together.out, apart.out);
  EXPECT_EQ(together.dq, apart.dq);
  EXPECT_EQ(together.dk, apart.dk);
  EXPECT_EQ(together.dv, apart.dv);
}

TEST_P(TileParts, StayInBounds) {
  for (const Shape& shape : {Shape{2, 2, 2, 2, 7, 9, 3, 5}, {1, 2, 2, 1, 33, 65, 40, 24}}) {
    for (const float size : {1.0f, 0x1p70f}) {  // the second is not for tiles
      Problem<float> problem(shape, {.bias = BiasKind::kAdditive,
                                     .left = 30,
                                     .right = 5,
                                     .softcap = 3,
                                     .slopes = true,
                                     .sinks = 1,
                                     .float_parts = parts()});
      problem.k[0] = problem.v[0] = size;
      testing::describe_guarded_call(table().name);
      Memory heap;
      const Answer expected = testing::run_in(heap, table(), problem);
      for (const Place place : {Place::kAfterGuard, Place::kBeforeGuard}) {
        Memory memory(place);
        const Answer got = testing::run_in(memory, table(), problem);
        EXPECT_EQ(got.out, expected.out);
        EXPECT_EQ(got.dq, expected.dq);
        EXPECT_EQ(got.dk, expected.dk);
        EXPECT_EQ(got.dv, expected.dv);
      }
    }
  }
}

// Compares rows of `width` elements: NaN and Inf in the same places, and the rest relative to the
// largest finite element of the row, or to 1.
void expect_same_rows(const char* name, const std::vector<double>& got,
                      const std::vector<double>& expected, int64_t width, double tolerance) {
  ASSERT_EQ(got.size(), expected.size());
  for (size_t row = 0; row < got.size(); row += width) {
    double size = 1;
    for (int64_t i = 0; i < width; ++i) {
      const double x = std::abs(expected[row + i]);
      if (std::isfinite(x)) size = std::max(size, x);
    }
    for (int64_t i = 0; i < width; ++i) {
      const double a = got[row + i], b = expected[row + i];
      const bool same =
          std::isnan(b) ? std::isnan(a) : testing::difference(a, b) <= tolerance * size;
      ASSERT_TRUE(same) << name << "[" << row << " + " << i << "] is " << a << ", expected " << b;
    }
  }
}

// NaN, Inf and numbers whose products could overflow, in one block of several. Masked pairs with
// them contribute nothing.
TEST_P(TileParts, TakeTheMicroKernelForNumbersThatPartsCannotHold) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  const Shape shape = {1, 1, 1, 1, 70, 150, 16, 9};
  const Options masks[] = {{.float_parts = parts()}, {.causal = true, .float_parts = parts()}};
  for (const Options& options : masks) {
    for (const float bad : {std::nanf(""), kInf, -kInf, 0x1p125f, -0x1p60f}) {
      for (int input = 0; input < 4; ++input) {
        Problem<float> problem(shape, options);
        std::vector<float>* const inputs[] = {&problem.q, &problem.k, &problem.v,
                                              &problem.grad_out};
        std::vector<float>& x = *inputs[input];
        x[x.size() / 2] = bad;
        SCOPED_TRACE(::testing::Message()
                     << "causal " << options.causal << " bad " << bad << " input " << input);
        const Answer got = run(problem), expected = run_without_parts(problem);
        // dS is the difference of products with V and with the output, and has the error of the
        // output's parts.
        const double allowed = tolerance(parts());
        const double times = std::isfinite(bad) ? allowed * std::abs(bad) : allowed;
        expect_same_rows("out", got.out, expected.out, shape.value_dim, allowed);
        expect_same_rows("lse", got.lse, expected.lse, 1, allowed);
        expect_same_rows("dq", got.dq, expected.dq, shape.head_dim, times);
        expect_same_rows("dk", got.dk, expected.dk, shape.head_dim, times);
        expect_same_rows("dv", got.dv, expected.dv, shape.value_dim, allowed);
        if (HasFatalFailure()) return;
      }
    }
  }
}

// Relative to the largest element, whatever its size.
double relative_error(const std::vector<double>& got, const std::vector<double>& expected) {
  return testing::largest_difference(got, expected) / testing::largest(expected);
}

// The low parts of small numbers would be denormals, which tiles flush.
TEST_P(TileParts, KeepTheAccuracyOfSmallNumbers) {
  const Shape shape = {1, 1, 1, 1, 40, 70, 16, 8};
  for (const float size : {0x1p-20f, 0x1p-45f, 0x1p-100f}) {
    SCOPED_TRACE(size);
    Problem<float> values(shape, {.float_parts = parts()});
    for (float& x : values.v) x *= size;
    EXPECT_LE(relative_error(run(values).out, testing::reference(values).out), tolerance(parts()));

    Problem<float> column(shape, {.float_parts = parts()});
    const int64_t width = shape.value_dim;
    for (size_t i = 0; i < column.v.size(); i += width) column.v[i] *= size;
    const auto only_column = [&](const std::vector<double>& x) {
      std::vector<double> first;
      for (size_t i = 0; i < x.size(); i += width) first.push_back(x[i]);
      return first;
    };
    EXPECT_LE(
        relative_error(only_column(run(column).out), only_column(testing::reference(column).out)),
        tolerance(parts()));

    Problem<float> gradients(shape, {.float_parts = parts()});
    for (float& x : gradients.grad_out) x *= size;
    const Answer got = run(gradients), expected = testing::reference(gradients);
    EXPECT_LE(relative_error(got.dq, expected.dq), tolerance(parts()));
    EXPECT_LE(relative_error(got.dk, expected.dk), tolerance(parts()));
    EXPECT_LE(relative_error(got.dv, expected.dv), tolerance(parts()));
  }
}

// Zeros do not count as small.
TEST_P(TileParts, ZerosAreExact) {
  Problem<float> problem({1, 1, 1, 1, 40, 70, 16, 8}, {.float_parts = parts()});
  std::fill(problem.v.begin(), problem.v.end(), 0.0f);
  const Answer got = run(problem);
  EXPECT_EQ(testing::largest(got.out), 0);
  EXPECT_EQ(testing::largest(got.dq), 0);
}

// With such a scale, products could overflow that would not in float, so tiles do not compute them.
TEST_P(TileParts, LeaveExtremeScalesToTheMicroKernel) {
  for (const double scale : {0.0, 0x1p-100, 0x1p14}) {
    Problem<float> problem({1, 1, 1, 1, 20, 30, 8, 8}, {.float_parts = parts()});
    problem.scale = scale;
    EXPECT_EQ(run(problem).out, run_without_parts(problem).out) << scale;
  }
}

std::string name_of(const ::testing::TestParamInfo<TileParts::ParamType>& info) {
  std::string name = std::get<0>(info.param)->name;
  std::replace(name.begin(), name.end(), '-', '_');
  return name + (std::get<1>(info.param) == 2 ? "_two" : "_three");
}
INSTANTIATE_TEST_SUITE_P(
    Isa, TileParts,
    ::testing::Combine(::testing::ValuesIn(testing::supported_kernels(/*tiles=*/true)),
                       ::testing::Values(2, 3)),
    name_of);

}  // namespace
}  // namespace flash
