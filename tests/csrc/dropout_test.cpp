// Compares the dropout kernels of every instruction set with a reference in double.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>

#include "csrc/philox.h"
#include "tests/csrc/isa.h"
#include "tests/csrc/memory.h"

namespace flash {
namespace {

using testing::Memory;
using testing::normal;
using testing::Place;
using testing::typed;

constexpr uint64_t kSeed = 0x123456789abcdefull;

template <class T>
std::vector<T> run(const KernelTable& table, DropoutKind kind, double dropout,
                   const std::vector<T>& input, const std::vector<T>& other,
                   bool one_by_one = false, Place place = Place::kHeap) {
  Memory memory(place);
  const auto size = static_cast<int64_t>(input.size());
  T* out = memory.array<T>("out", size);
  DropoutParams p = {};
  p.kind = kind;
  p.input = memory.copy("input", input);
  p.other = memory.copy("other", other);
  p.out = out;
  p.elements = size;
  p.dropout = dropout;
  p.seed = kSeed;
  const WorkPlan plan = typed<T>(table).dropout_plan(p);
  if (one_by_one) {
    for (int64_t unit = plan.units - 1; unit >= 0; --unit) {
      typed<T>(table).dropout(p, unit, unit + 1);
    }
  } else {
    typed<T>(table).dropout(p, 0, plan.units);
  }
  return std::vector<T>(out, out + size);
}

/// Whether element i is kept, as csrc/philox.h defines it, from its own counter.
bool keeps(double dropout, int64_t i) {
  const int64_t block = i / 64, place = i % 64;
  const int64_t counter = block * 16 + place % 32 / 2;
  uint64_t word[1][4] = {
      {static_cast<uint32_t>(counter), static_cast<uint32_t>(counter >> 32), 0, 0xffffffffu}};
  philox<ScalarCounters>(philox_key(kSeed), word);
  return static_cast<uint32_t>(word[0][2 * (place / 32) + place % 2]) >= dropout_threshold(dropout);
}

/// The expected value, and the magnitude that its tolerance is relative to.
struct Expected {
  double value;
  double size;
};

Expected expected(DropoutKind kind, double scale, bool kept, double x, double other) {
  const double phi = 0.5 * std::erfc(-x * std::sqrt(0.5));
  const double density = std::exp(-0.5 * x * x) / std::sqrt(2 * std::acos(-1.0));
  const double k = kept ? scale : 0;
  switch (kind) {
    case DropoutKind::kPlain:
      return {k * x, std::abs(k * x)};
    case DropoutKind::kAdd:
      return {other + k * x, std::abs(other) + std::abs(k * x)};
    case DropoutKind::kRelu:
      return {k * std::max(x, 0.0), std::abs(k * x)};
    case DropoutKind::kReluGradient:
      return {x > 0 ? k * other : 0, std::abs(k * other)};
    case DropoutKind::kGelu:
      return {k * x * phi, std::abs(k * x * phi)};
    case DropoutKind::kGeluGradient:
      return {k * (phi + x * density) * other, k * (phi + std::abs(x * density)) * std::abs(other)};
  }
  return {};
}

constexpr DropoutKind kKinds[] = {DropoutKind::kPlain,        DropoutKind::kAdd,
                                  DropoutKind::kRelu,         DropoutKind::kGelu,
                                  DropoutKind::kReluGradient, DropoutKind::kGeluGradient};

class DropoutOnEveryIsa : public ::testing::TestWithParam<const KernelTable*> {};

template <class T>
void expect_matches_reference(const KernelTable& table) {
  for (const DropoutKind kind : kKinds) {
    for (const int64_t size : {0, 1, 2, 31, 33, 63, 64, 65, 70, 1023, 1024, 1025, 3000}) {
      SCOPED_TRACE(::testing::Message() << "kind " << static_cast<int>(kind) << " size " << size);
      const std::vector<T> x = normal<T>(size, 1), other = normal<T>(size, 2);
      const std::vector<T> got = run<T>(table, kind, 0.3, x, other);
      for (int64_t i = 0; i < size; ++i) {
        const Expected e = expected(kind, 1 / 0.7, keeps(0.3, i), x[i], other[i]);
        // The exponential and the polynomial have errors of some ulp, and the tail e^(-x^2 / 2)
        // multiplies the rounding error of its exponent, which is up to 10 here.
        const double units =
            kind == DropoutKind::kGelu || kind == DropoutKind::kGeluGradient ? 8 + x[i] * x[i] : 2;
        ASSERT_LE(std::abs(got[i] - e.value),
                  units * static_cast<double>(std::numeric_limits<T>::epsilon()) * e.size)
            << i << ": " << x[i];
      }
    }
  }
}

TEST_P(DropoutOnEveryIsa, FloatMatchesReference) { expect_matches_reference<float>(*GetParam()); }
TEST_P(DropoutOnEveryIsa, DoubleMatchesReference) { expect_matches_reference<double>(*GetParam()); }

template <class T>
void expect_in_bounds(const KernelTable& table, int64_t size) {
  const std::vector<T> x = normal<T>(size, 1), other = normal<T>(size, 2);
  for (const DropoutKind kind : kKinds) {
    const std::string text = table.name + (": kind " + std::to_string(static_cast<int>(kind))) +
                             " size " + std::to_string(size);
    testing::describe_guarded_call(text.c_str());
    const std::vector<T> expected = run<T>(table, kind, 0.3, x, other);
    for (const Place place : {Place::kAfterGuard, Place::kBeforeGuard}) {
      ASSERT_EQ(run<T>(table, kind, 0.3, x, other, /*one_by_one=*/false, place), expected) << text;
    }
  }
}

TEST_P(DropoutOnEveryIsa, StaysWithinItsArrays) {
  for (int64_t size = 0; size <= 200; ++size) {
    expect_in_bounds<float>(*GetParam(), size);
    expect_in_bounds<double>(*GetParam(), size);
  }
  for (const int64_t size : {1023, 1024, 1025, 3000}) {
    expect_in_bounds<float>(*GetParam(), size);
    expect_in_bounds<double>(*GetParam(), size);
  }
}

TEST_P(DropoutOnEveryIsa, GradientOfAPartMatchesTheWholeAndGivesTheActivation) {
  constexpr int64_t kFirst = 3 * kDropoutBlock;
  const std::vector<double> x = normal<double>(500, 1);
  std::vector<double> gradient = normal<double>(500, 2);
  for (const auto& [kind, slope] : {std::pair(DropoutKind::kRelu, DropoutKind::kReluGradient),
                                    std::pair(DropoutKind::kGelu, DropoutKind::kGeluGradient)}) {
    const std::vector<double> whole = run<double>(*GetParam(), kind, 0.3, x, x);
    const std::vector<double> slopes = run<double>(*GetParam(), slope, 0.3, x, gradient);
    std::vector<double> in_place = gradient, value(x.size() - kFirst);
    DropoutParams p = {};
    p.kind = slope;
    p.input = x.data() + kFirst;
    p.other = p.out = in_place.data() + kFirst;
    p.value = value.data();
    p.first = kFirst;
    p.elements = static_cast<int64_t>(value.size());
    p.dropout = 0.3;
    p.seed = kSeed;
    const auto& kernels = typed<double>(*GetParam());
    kernels.dropout(p, 0, kernels.dropout_plan(p).units);
    for (size_t i = 0; i < value.size(); ++i) {
      EXPECT_EQ(value[i], whole[kFirst + i]) << i;
      EXPECT_EQ(in_place[kFirst + i], slopes[kFirst + i]) << i;
    }
  }
}

/// Checks the largest errors of gelu(x), in units of epsilon |x|, and of its derivative, in units
/// of epsilon, over x in [-a, a].
template <class T>
void expect_gelu(const KernelTable& table, double a, double value_bound, double slope_bound) {
  constexpr int64_t kSteps = 200'000;
  std::vector<T> x(2 * kSteps + 1), ones(x.size(), T(1));
  for (int64_t i = -kSteps; i <= kSteps; ++i) {
    x[i + kSteps] = static_cast<T>(a * static_cast<double>(i) / kSteps);
  }
  const std::vector<T> value = run<T>(table, DropoutKind::kGelu, 0.0, x, ones);
  const std::vector<T> slope = run<T>(table, DropoutKind::kGeluGradient, 0.0, x, ones);
  constexpr long double kEpsilon = std::numeric_limits<T>::epsilon();
  long double worst = 0, worst_slope = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    const long double z = x[i];
    const long double phi = 0.5L * std::erfc(-z * std::sqrt(0.5L));
    const long double density = std::exp(-0.5L * z * z) * 0.3989422804014326779399460599343819L;
    if (z != 0) {
      worst = std::max(worst, std::abs((value[i] - z * phi) / z) / kEpsilon);
    } else {
      EXPECT_EQ(value[i], T(0));
    }
    worst_slope = std::max(worst_slope, std::abs(slope[i] - (phi + z * density)) / kEpsilon);
  }
  EXPECT_LE(worst, value_bound);
  EXPECT_LE(worst_slope, slope_bound);
}

// Beyond these arguments, the tail is below one ulp of 1.
TEST_P(DropoutOnEveryIsa, GeluIsAccurateInFloat) { expect_gelu<float>(*GetParam(), 15, 1.5, 1.5); }
TEST_P(DropoutOnEveryIsa, GeluIsAccurateInDouble) {
  expect_gelu<double>(*GetParam(), 40, 1.5, 1.5);
}

TEST_P(DropoutOnEveryIsa, GeluOfSpecialValues) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  const std::vector<float> x = {kInf, std::nanf(""), 1e30f, -1e30f, 0.0f, -20.0f};
  const std::vector<float> ones(x.size(), 1.0f);
  const std::vector<float> value = run<float>(*GetParam(), DropoutKind::kGelu, 0.0, x, ones);
  EXPECT_EQ(value[0], kInf);
  EXPECT_TRUE(std::isnan(value[1]));
  EXPECT_EQ(value[2], 1e30f);
  EXPECT_EQ(value[3], 0.0f);
  EXPECT_EQ(value[4], 0.0f);
  EXPECT_EQ(value[5], 0.0f);
  const std::vector<float> slope =
      run<float>(*GetParam(), DropoutKind::kGeluGradient, 0.0, {1e30f, -1e30f, 0.0f}, ones);
  EXPECT_THAT(slope, ::testing::ElementsAre(1.0f, 0.0f, ::testing::FloatEq(0.5f)));
  const std::vector<float> relu =
      run<float>(*GetParam(), DropoutKind::kRelu, 0.0, {std::nanf(""), -1.0f}, ones);
  EXPECT_TRUE(std::isnan(relu[0]));
  EXPECT_EQ(relu[1], 0.0f);
}

TEST_P(DropoutOnEveryIsa, ProbabilityOneDropsEverything) {
  const std::vector<double> x = normal<double>(1000, 3);
  for (const double y : run<double>(*GetParam(), DropoutKind::kPlain, 1.0, x, {})) EXPECT_EQ(y, 0);
}

template <class T>
void expect_one_mask(const KernelTable& table) {
  const std::vector<T> ones(5000, T(1));
  const std::vector<T> together = run<T>(table, DropoutKind::kPlain, 0.5, ones, ones);
  EXPECT_EQ(together, run<T>(table, DropoutKind::kPlain, 0.5, ones, ones, /*one_by_one=*/true));
  EXPECT_EQ(together, run<T>(scalar_kernels(), DropoutKind::kPlain, 0.5, ones, ones));
  EXPECT_EQ(together, run<T>(table, DropoutKind::kReluGradient, 0.5, ones, ones));
}

TEST_P(DropoutOnEveryIsa, MaskDoesNotDependOnTheIsaOrTheDistributionOfUnits) {
  expect_one_mask<float>(*GetParam());
  expect_one_mask<double>(*GetParam());
}

TEST(ElementWords, DependOnBothHalvesOfTheCounter) {
  uint32_t low[64], high[64];
  element_words<ScalarCounters>(philox_key(1), 0, low);
  // 2^32 / 16: the first block whose counters use their high half.
  element_words<ScalarCounters>(philox_key(1), 1u << 28, high);
  for (int i = 0; i < 64; ++i) EXPECT_NE(low[i], high[i]);
}

INSTANTIATE_TEST_SUITE_P(Isa, DropoutOnEveryIsa, ::testing::ValuesIn(testing::supported_kernels()),
                         [](const auto& info) { return std::string(info.param->name); });

}  // namespace
}  // namespace flash
