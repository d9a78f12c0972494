// Compares the attention kernels of every instruction set with the reference.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "tests/csrc/every_option.h"
#include "tests/csrc/expect_close.h"
#include "tests/csrc/isa.h"
#include "tests/csrc/run.h"

namespace flash {
namespace {

using testing::Answer;
using testing::largest_difference;
using testing::Options;
using testing::Problem;
using testing::supported_kernels;

template <class T>
void expect_matches_reference(const Shape& shape, const Options& options) {
  const Problem<T> problem(shape, options);
  const Answer expected = testing::reference(problem);
  for (const KernelTable* table : supported_kernels()) {
    SCOPED_TRACE(table->name + (": " + testing::describe(shape, options)));
    testing::expect_close<T>(testing::run(*table, problem), expected, options);
  }
}

template <class T>
void expect_all_match_reference(Storage storage = Storage::kNative) {
  for (const Shape& shape : testing::kShapes) {
    for (Options options : testing::kEveryOption) {
      options.storage = storage;
      options.out_16_bit = storage != Storage::kNative && shape.queries % 2 == 1;
      expect_matches_reference<T>(shape, options);
    }
  }
}

TEST(Attention, FloatMatchesReference) { expect_all_match_reference<float>(); }
TEST(Attention, DoubleMatchesReference) { expect_all_match_reference<double>(); }
TEST(Attention, BFloat16MatchesReference) { expect_all_match_reference<float>(Storage::kBFloat16); }
TEST(Attention, HalfMatchesReference) { expect_all_match_reference<float>(Storage::kHalf); }

// The backward skips chunks of keys that no query of a block attends. With some of these windows,
// the only pair of a block and a chunk that is not masked is the last query and the first key.
TEST(Attention, MatchesReferenceForEveryWindowSize) {
  const Shape shape = {1, 1, 1, 1, 257, 257, 4, 4};
  for (int64_t reach = 0; reach <= 64; ++reach) {
    expect_matches_reference<float>(shape, {.left = 0, .right = reach});
    expect_matches_reference<float>(shape, {.left = reach, .right = 0});
  }
}

// Tolerances for results of order 1 that differ only in the order of summation.
constexpr double kSameFloat = 1e-5, kSameDouble = 1e-14;

class AttentionOnEveryIsa : public ::testing::TestWithParam<const KernelTable*> {};

TEST_P(AttentionOnEveryIsa, ResultsDoNotDependOnHowUnitsAreDistributed) {
  const Problem<float> problem({1, 2, 2, 1, 500, 300, 32, 32}, {.causal = true, .dropout = 0.1});
  const Answer together = testing::run(*GetParam(), problem);
  const Answer apart = testing::run(*GetParam(), problem, /*one_by_one=*/true);
  EXPECT_EQ(together.out, apart.out);
  EXPECT_EQ(together.dq, apart.dq);
  EXPECT_EQ(together.dk, apart.dk);
  EXPECT_EQ(together.dv, apart.dv);
}

TEST_P(AttentionOnEveryIsa, QueriesBeforeAllKeysGiveZeros) {
  // Causal masking is aligned bottom-right: of 5 queries with 2 keys, the first 3 attend no key.
  const Problem<float> problem({1, 1, 1, 1, 5, 2, 4, 4}, {.causal = true});
  const Answer got = testing::run(*GetParam(), problem);
  for (int i = 0; i < 3 * 4; ++i) {
    EXPECT_EQ(got.out[i], 0);
    EXPECT_EQ(got.dq[i], 0);
  }
  EXPECT_NE(got.out[3 * 4], 0);
}

TEST_P(AttentionOnEveryIsa, NaNInAMaskedKeyDoesNotPropagate) {
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
        EXPECT_NEAR(got.out[at], clean.out[at], kSameFloat) << i;
        EXPECT_NEAR(got.dq[at], clean.dq[at], kSameFloat) << i;
      } else {
        EXPECT_TRUE(std::isnan(got.out[at])) << i;
        EXPECT_TRUE(std::isnan(got.dq[at])) << i;
      }
    }
  }
}

TEST_P(AttentionOnEveryIsa, NaNOutsideTheWindowDoesNotPropagate) {
  constexpr int64_t kLength = 150, kWidth = 8, kBad = 70, kLeft = 9, kRight = 4;
  const Options options = {
      .left = kLeft, .right = kRight, .softcap = 3, .slopes = true, .sinks = 1};
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
        EXPECT_NEAR(got.out[at], clean.out[at], kSameFloat) << i;
        EXPECT_NEAR(got.dq[at], clean.dq[at], kSameFloat) << i;
      }
    }
    EXPECT_EQ(std::isnan(got.dslopes[i]), attends) << i;
  }
}

// Windows may be any 64-bit integers, and must not overflow when key ranges are computed.
TEST_P(AttentionOnEveryIsa, HugeWindowsDoNotOverflow) {
  constexpr int64_t kLargest = std::numeric_limits<int64_t>::max();
  const Shape shape = {1, 1, 1, 1, 40, 50, 8, 8};
  const Answer everything = testing::run(*GetParam(), Problem<double>(shape, {}));
  for (const int64_t huge : {int64_t{50}, int64_t{1} << 62, kLargest}) {
    for (const Options& options :
         {Options{.left = huge}, Options{.right = huge}, Options{.left = huge, .right = huge}}) {
      const Answer got = testing::run(*GetParam(), Problem<double>(shape, options));
      EXPECT_LE(largest_difference(got.out, everything.out), kSameDouble) << huge;
      EXPECT_LE(largest_difference(got.dk, everything.dk), kSameDouble) << huge;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Isa, AttentionOnEveryIsa, ::testing::ValuesIn(supported_kernels()),
                         [](const auto& info) { return std::string(info.param->name); });

}  // namespace
}  // namespace flash
