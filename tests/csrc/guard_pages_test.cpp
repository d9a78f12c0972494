// No kernel touches a byte outside of its arrays. Every input, output, gradient and scratch begins
// right after a guard page, and in a second run ends right before one.

#include <gtest/gtest.h>

#include <iterator>
#include <string>

#include "tests/csrc/isa.h"
#include "tests/csrc/run.h"

namespace flash {
namespace {

using testing::Answer;
using testing::Directions;
using testing::Layout;
using testing::Memory;
using testing::Options;
using testing::Place;
using testing::Positions;
using testing::Problem;
using testing::supported_kernels;

/// Expects no fault, and the same bits for every placement of the arrays.
template <class T>
void expect_in_bounds(const Shape& shape, const Options& options, Directions directions) {
  const Problem<T> problem(shape, options);
  for (const KernelTable* table : supported_kernels()) {
    const std::string text = table->name + (": " + testing::describe(shape, options));
    testing::describe_guarded_call(text.c_str());
    Memory heap;
    const Answer expected = testing::run_in(heap, *table, problem, directions);
    for (const Place place : {Place::kAfterGuard, Place::kBeforeGuard}) {
      Memory memory(place);
      const Answer got = testing::run_in(memory, *table, problem, directions);
      ASSERT_EQ(got.out, expected.out) << text;
      ASSERT_EQ(got.lse, expected.lse) << text;
      ASSERT_EQ(got.dq, expected.dq) << text;
      ASSERT_EQ(got.dk, expected.dk) << text;
      ASSERT_EQ(got.dv, expected.dv) << text;
      ASSERT_EQ(got.dbias, expected.dbias) << text;
      ASSERT_EQ(got.dslopes, expected.dslopes) << text;
      ASSERT_EQ(got.dsinks, expected.dsinks) << text;
    }
  }
}

void expect_in_bounds_for_all_types(const Shape& shape, Options options,
                                    Directions directions = Directions::kBoth) {
  expect_in_bounds<float>(shape, options, directions);
  expect_in_bounds<double>(shape, options, directions);
  for (const Storage storage : {Storage::kBFloat16, Storage::kHalf}) {
    options.storage = storage;
    options.out_16_bit = !options.out_16_bit;
    expect_in_bounds<float>(shape, options, directions);
  }
}

constexpr BiasKind kAdditive = BiasKind::kAdditive, kBoolean = BiasKind::kBoolean;
const Options kOptions[] = {
    {},
    {.causal = true},
    {.dropout = 0.3},
    {.bias = kAdditive},
    {.causal = true, .bias = kAdditive},
    {.bias = kAdditive, .bias_per_key = true},
    {.bias = kBoolean},
    {.bias = kBoolean, .bias_per_key = true},
    {.block_size = 5},
    {.left = 5, .right = 2},
    {.bias = kAdditive, .left = 3, .layout = Layout::kGaps},
    {.bias = kBoolean, .left = 5, .right = 2},
    {.softcap = 2},
    {.slopes = true},
    {.sinks = 1, .grad_lse = true},
    {.left = 9, .right = 4, .slopes = true, .positions = Positions::kRandom},
    {.causal = true, .sinks = 1, .positions = Positions::kBeforeEveryKey},
    {.layout = Layout::kGaps},
    {.sinks = 1, .layout = Layout::kHeadsAfterLength},
};

TEST(GuardPages, StaysInBoundsForEveryWidth) {
  for (int64_t width = 1; width <= 70; ++width) {
    const int64_t other = width * 37 % 70 + 1;
    const Options options = {.layout = width % 2 == 0 ? Layout::kGaps : Layout::kContiguous};
    expect_in_bounds_for_all_types({1, 1, 1, 1, 7, 11, width, other}, options);
    expect_in_bounds_for_all_types({1, 1, 1, 1, 3, 66, other, width}, options);
  }
  for (const int64_t width : {95, 96, 97, 127, 128, 129, 191, 192, 193, 255, 256, 257, 300}) {
    expect_in_bounds_for_all_types({1, 1, 1, 1, 9, 10, width, 5}, {});
    expect_in_bounds_for_all_types({1, 1, 1, 1, 2, 70, 5, width}, {});
  }
}

TEST(GuardPages, StaysInBoundsForEveryLength) {
  constexpr int64_t kLengths[] = {1,  2,  3,  4,  5,  6,  7,  8,  9,   11,  12,
                                  13, 15, 16, 17, 23, 24, 25, 31, 32,  33,  47,
                                  48, 49, 63, 64, 65, 95, 96, 97, 127, 128, 129};
  for (const int64_t queries : kLengths) {
    for (const int64_t keys : kLengths) {
      const Options options = {.causal = (queries + keys) % 3 == 0};
      expect_in_bounds_for_all_types({1, 1, 1, 1, queries, keys, 5, 3}, options);
    }
  }
}

TEST(GuardPages, StaysInBoundsForEveryOption) {
  for (const Options& options : kOptions) {
    for (const auto& [queries, keys] :
         {std::pair<int64_t, int64_t>{7, 9}, {1, 17}, {33, 65}, {50, 131}, {2, 80}}) {
      expect_in_bounds_for_all_types({2, 2, 1, 2, queries, keys, 9, 7}, options);
    }
  }
}

// Groups of tiles that share a block of keys, and several chunks of queries and keys.
TEST(GuardPages, StaysInBoundsForLongSequences) {
  expect_in_bounds_for_all_types({1, 1, 1, 1, 400, 1030, 33, 17}, {.causal = true});
  expect_in_bounds<float>({1, 1, 1, 1, 200, 2100, 130, 65}, {}, Directions::kBoth);
}

TEST(GuardPages, DecodeStaysInBounds) {
  constexpr int64_t kKeys[] = {63, 64, 65, 95, 127, 128, 129, 1023, 1024, 1025, 2047, 2049};
  int64_t width = 0;
  for (int64_t queries = 1; queries <= 9; ++queries) {
    for (const int64_t keys : kKeys) {
      width = (width + 11) % 67;
      expect_in_bounds_for_all_types({1, 2, 1, 1, queries, keys, width + 1, 67 - width},
                                     {.causal = keys % 2 == 0}, Directions::kForward);
    }
  }
  for (const Options& options : kOptions) {
    expect_in_bounds_for_all_types({1, 2, 1, 2, 2, 1100, 17, 9}, options, Directions::kForward);
  }
}

}  // namespace
}  // namespace flash
