// bfloat16 on matrix tiles: on those of this CPU, if it has any, and on emulated ones.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>

#if defined(__x86_64__)
#include "csrc/amx/tiles.h"
#endif
#include "csrc/amx_emulated/tiles.h"
#include "tests/csrc/every_option.h"
#include "tests/csrc/expect_close.h"
#include "tests/csrc/isa.h"
#include "tests/csrc/run.h"
#include "tests/tolerances.h"

namespace flash {
namespace {

using testing::Answer;
using testing::Memory;
using testing::Options;
using testing::Place;
using testing::Problem;

constexpr double kProductUnits =
    tests::kTileRounding / static_cast<double>(std::numeric_limits<float>::epsilon());

class TilesOnEveryIsa : public ::testing::TestWithParam<const KernelTable*> {};

TEST_P(TilesOnEveryIsa, MatchTheReference) {
  for (const Shape& shape : testing::kShapes) {
    for (Options options : testing::kEveryOption) {
      options.storage = Storage::kBFloat16;
      options.out_16_bit = shape.queries % 2 == 1;
      const Problem<float> problem(shape, options);
      SCOPED_TRACE(testing::describe(shape, options));
      testing::expect_close<float>(testing::run(*GetParam(), problem), testing::reference(problem),
                                   options, testing::Directions::kBoth, kProductUnits);
    }
  }
}

TEST_P(TilesOnEveryIsa, ResultsDoNotDependOnHowUnitsAreDistributed) {
  const Problem<float> problem(
      {1, 2, 2, 1, 300, 200, 32, 20},
      {.causal = true, .dropout = 0.1, .storage = Storage::kBFloat16, .out_16_bit = true});
  const Answer together = testing::run(*GetParam(), problem);
  const Answer apart = testing::run(*GetParam(), problem, /*one_by_one=*/true);
  EXPECT_EQ(together.out, apart.out);
  EXPECT_EQ(together.dq, apart.dq);
  EXPECT_EQ(together.dk, apart.dk);
  EXPECT_EQ(together.dv, apart.dv);
}

TEST_P(TilesOnEveryIsa, StayInBounds) {
  for (const Shape& shape : testing::kShapes) {
    const Problem<float> problem(shape, {.bias = BiasKind::kAdditive,
                                         .left = 30,
                                         .right = 5,
                                         .softcap = 3,
                                         .slopes = true,
                                         .sinks = 1,
                                         .storage = Storage::kBFloat16});
    testing::describe_guarded_call(GetParam()->name);
    Memory heap;
    const Answer expected = testing::run_in(heap, *GetParam(), problem);
    for (const Place place : {Place::kAfterGuard, Place::kBeforeGuard}) {
      Memory memory(place);
      const Answer got = testing::run_in(memory, *GetParam(), problem);
      EXPECT_EQ(got.out, expected.out);
      EXPECT_EQ(got.dq, expected.dq);
      EXPECT_EQ(got.dk, expected.dk);
      EXPECT_EQ(got.dv, expected.dv);
    }
  }
}

// Row kBad of the keys and values is NaN, and only the queries from kBad on attend it.
TEST_P(TilesOnEveryIsa, NaNInAMaskedKeyDoesNotPropagate) {
  constexpr int64_t kLength = 150, kWidth = 8, kBad = 70;
  Problem<float> problem({1, 1, 1, 1, kLength, kLength, kWidth, kWidth},
                         {.causal = true, .storage = Storage::kBFloat16});
  const Answer clean = testing::run(*GetParam(), problem);
  for (int64_t d = 0; d < kWidth; ++d) {
    problem.k[kBad * kWidth + d] = problem.v[kBad * kWidth + d] = std::nanf("");
  }
  const Answer got = testing::run(*GetParam(), problem);
  for (int64_t i = 0; i < kLength; ++i) {
    for (int64_t d = 0; d < kWidth; ++d) {
      const int64_t at = i * kWidth + d;
      if (i < kBad) {
        EXPECT_NEAR(got.out[at], clean.out[at], tests::kTileRounding) << i;
        EXPECT_NEAR(got.dq[at], clean.dq[at], tests::kTileRounding) << i;
      } else {
        EXPECT_TRUE(std::isnan(got.out[at])) << i;
        EXPECT_TRUE(std::isnan(got.dq[at])) << i;
      }
    }
  }
}

// The scores of that key are -inf for the queries, but NaN for the zeros that fill their tile.
TEST_P(TilesOnEveryIsa, InfinityInAKeyDoesNotMeetThePaddingOfQueries) {
  constexpr int64_t kQueries = 5, kKeys = 9, kWidth = 8, kBad = 2;
  Problem<float> problem({1, 1, 1, 1, kQueries, kKeys, kWidth, kWidth},
                         {.storage = Storage::kBFloat16});
  for (int64_t i = 0; i < kQueries; ++i) problem.q[i * kWidth] = 1;
  problem.k[kBad * kWidth] = -std::numeric_limits<float>::infinity();
  const Answer got = testing::run(*GetParam(), problem);
  EXPECT_THAT(got.out,
              ::testing::Each(::testing::Truly([](double x) { return std::isfinite(x); })));
  for (int64_t d = 0; d < kWidth; ++d) {
    EXPECT_EQ(got.dk[kBad * kWidth + d], 0);
    EXPECT_EQ(got.dv[kBad * kWidth + d], 0);
  }
}

INSTANTIATE_TEST_SUITE_P(Isa, TilesOnEveryIsa,
                         ::testing::ValuesIn(testing::supported_kernels(/*tiles=*/true)),
                         [](const auto& info) {
                           std::string name = info.param->name;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

#if defined(__x86_64__)
using TileWords = uint32_t[256];

template <class M>
void multiply_add(const TileWords& left, const TileWords& right, TileWords& sum) {
  const typename M::Session session;
  M::template load<0>(sum, 64);
  M::template load<1>(left, 64);
  M::template load<2>(right, 64);
  M::template multiply_add<0, 1, 2>();
  M::template store<0>(sum, 64);
}

// Any bits are operands, so that denormals, Inf and NaN are among them.
void expect_the_bits_of_the_instruction() {
  std::mt19937 random(1);
  for (int round = 0; round < 500; ++round) {
    alignas(64) TileWords left, right, real, emulated;
    // Every other round, exponents near 0, so that sums are finite.
    const auto word = [&] {
      const uint32_t bits = random();
      return round % 2 == 0 ? bits : (bits & 0x807F807F) | 0x3F003F00;
    };
    for (int i = 0; i < 256; ++i) {
      left[i] = word();
      right[i] = word();
      real[i] = emulated[i] = word();
    }
    multiply_add<AmxTiles>(left, right, real);
    multiply_add<EmulatedTiles>(left, right, emulated);
    for (int i = 0; i < 256; ++i) {
      float a, b;
      std::memcpy(&a, &real[i], sizeof(a));
      std::memcpy(&b, &emulated[i], sizeof(b));
      if (std::isnan(a) && std::isnan(b)) continue;
      ASSERT_EQ(real[i], emulated[i]) << round << " " << i;
    }
  }
}
#endif

TEST(Tiles, EmulatedOnesGiveTheBitsOfTheInstruction) {
  bool has_amx = false;
  for (const KernelTable* table : testing::supported_kernels(/*tiles=*/true)) {
    has_amx |= std::string(table->name) == "amx";
  }
  std::cout << "matrix tiles: " << (has_amx ? "real and emulated" : "emulated only") << std::endl;
#if defined(__x86_64__)
  if (has_amx) expect_the_bits_of_the_instruction();
#endif
}

}  // namespace
}  // namespace flash
