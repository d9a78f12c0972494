// Compares decoding with the reference. Its kernels handle up to half a vector of queries, and at
// least 64 keys.

#include <gtest/gtest.h>

#include <vector>

#include "tests/csrc/expect_close.h"
#include "tests/csrc/isa.h"
#include "tests/csrc/run.h"

namespace flash {
namespace {

using testing::Answer;
using testing::Directions;
using testing::Layout;
using testing::Options;
using testing::Positions;
using testing::Problem;
using testing::supported_kernels;

// Around the keys per call of the score stage (64), per sum of values (32) and per step (1024).
constexpr int64_t kKeys[] = {63,  64,  65,  79,   95,   96,   97,   127,  128,  129, 159,
                             200, 255, 257, 1023, 1024, 1025, 1055, 1087, 1089, 2047};
// Around one vector of 2 to 16 elements, and around 16 vectors, which are summed in one pass.
constexpr int64_t kWidths[] = {1,   2,   3,   4,   5,   7,   8,   9,   12,  15,  16,  17,
                               24,  31,  32,  33,  48,  63,  64,  65,  80,  96,  127, 128,
                               129, 160, 200, 255, 256, 257, 272, 300, 511, 512, 513};

constexpr BiasKind kAdditive = BiasKind::kAdditive, kBoolean = BiasKind::kBoolean;
const Options kOptions[] = {
    {.causal = true},
    {.causal = true, .left = 100},
    {.left = 70, .right = 3},
    {.bias = kAdditive},
    {.causal = true, .bias = kAdditive, .bias_per_key = true},
    {.bias = kBoolean},
    {.bias = kBoolean, .sinks = 1, .bias_per_key = true},
    {.slopes = true},
    {.softcap = 0.8},
    {.sinks = 1, .layout = Layout::kGaps},
    {.causal = true, .positions = Positions::kRandom, .layout = Layout::kHeadsAfterLength},
    {.left = 40, .right = 90, .slopes = true, .positions = Positions::kRandom},
    {.causal = true, .block_size = 7, .sinks = 1, .grad_lse = true},
    {.sinks = 1000, .grad_lse = true},
    {.causal = true, .sinks = 1, .positions = Positions::kBeforeEveryKey},
    {.causal = true, .positions = Positions::kBeforeEveryKey},
    {.bias = kAdditive, .left = 500, .right = 9, .softcap = 2, .slopes = true, .sinks = 1},
};

template <class T>
void expect_matches_reference(const Shape& shape, const Options& options, Directions directions) {
  const Problem<T> problem(shape, options);
  const Answer expected = testing::reference(problem, directions);
  for (const KernelTable* table : supported_kernels()) {
    SCOPED_TRACE(table->name + (": " + testing::describe(shape, options)));
    testing::Memory memory;
    const Answer got = testing::run_in(memory, *table, problem, directions);
    testing::expect_close<T>(got, expected, options, directions);
  }
}

Shape shape_of(int64_t queries, int64_t keys, int64_t head_dim, int64_t value_dim) {
  return {1, 2, 1, 2, queries, keys, head_dim, value_dim};
}

template <class T>
void expect_every_length() {
  size_t width = 0;
  for (int64_t queries = 1; queries <= 9; ++queries) {
    for (const int64_t keys : kKeys) {
      const int64_t head_dim = kWidths[width++ % 24], value_dim = kWidths[5 * width % 24];
      expect_matches_reference<T>(shape_of(queries, keys, head_dim, value_dim),
                                  {.causal = keys % 2 == 0},
                                  keys < 300 ? Directions::kBoth : Directions::kForward);
    }
  }
}
TEST(Decode, FloatMatchesReferenceForEveryLength) { expect_every_length<float>(); }
TEST(Decode, DoubleMatchesReferenceForEveryLength) { expect_every_length<double>(); }

template <class T>
void expect_every_width(Storage storage = Storage::kNative) {
  int64_t queries = 0;
  for (const int64_t width : kWidths) {
    for (const int64_t other : {int64_t{5}, int64_t{33}}) {
      const Options options = {.storage = storage, .out_16_bit = storage != Storage::kNative};
      queries = queries % 8 + 1;
      expect_matches_reference<T>(shape_of(queries, 75, width, other), options,
                                  Directions::kForward);
      expect_matches_reference<T>(shape_of(queries, 131, other, width), options,
                                  Directions::kForward);
    }
  }
}
TEST(Decode, FloatMatchesReferenceForEveryWidth) { expect_every_width<float>(); }
TEST(Decode, DoubleMatchesReferenceForEveryWidth) { expect_every_width<double>(); }
TEST(Decode, BFloat16MatchesReferenceForEveryWidth) {
  expect_every_width<float>(Storage::kBFloat16);
}
TEST(Decode, HalfMatchesReferenceForEveryWidth) { expect_every_width<float>(Storage::kHalf); }

// Around the widest head that the decode kernel handles, 64 vectors.
TEST(Decode, MatchesReferenceForWideHeads) {
  for (const int64_t width : {256, 257, 512, 513, 1024, 1025}) {
    expect_matches_reference<float>(shape_of(2, 70, width, 3), {}, Directions::kForward);
    expect_matches_reference<double>(shape_of(2, 70, width, 3), {}, Directions::kForward);
  }
}

template <class T>
void expect_every_option(Storage storage = Storage::kNative) {
  size_t width = 0;
  for (Options options : kOptions) {
    options.storage = storage;
    for (const int64_t queries : {1, 2, 3, 4, 7, 8}) {
      for (const int64_t keys : {66, 640, 1100}) {
        options.out_16_bit = storage != Storage::kNative && queries % 2 == 0;
        const int64_t head_dim = kWidths[width++ % 20], value_dim = kWidths[7 * width % 20];
        expect_matches_reference<T>(shape_of(queries, keys, head_dim, value_dim), options,
                                    keys < 300 ? Directions::kBoth : Directions::kForward);
      }
    }
  }
}
TEST(Decode, FloatMatchesReferenceForEveryOption) { expect_every_option<float>(); }
TEST(Decode, DoubleMatchesReferenceForEveryOption) { expect_every_option<double>(); }
TEST(Decode, BFloat16MatchesReferenceForEveryOption) {
  expect_every_option<float>(Storage::kBFloat16);
}
TEST(Decode, HalfMatchesReferenceForEveryOption) { expect_every_option<float>(Storage::kHalf); }

}  // namespace
}  // namespace flash
