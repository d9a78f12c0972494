#include "csrc/philox.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cmath>

namespace flash {
namespace {

std::array<uint32_t, 4> philox_of(std::array<uint32_t, 4> counter, PhiloxKey key) {
  uint64_t word[1][4] = {{counter[0], counter[1], counter[2], counter[3]}};
  philox<ScalarCounters>(key, word);
  std::array<uint32_t, 4> random;
  for (int w = 0; w < 4; ++w) ScalarCounters::store(&random[w], word[0][w]);
  return random;
}

// The known answers of philox4x32-10 from kat_vectors in the authors' Random123 library.
TEST(Philox, MatchesKnownAnswers) {
  EXPECT_THAT(philox_of({0, 0, 0, 0}, {{0, 0}}),
              testing::ElementsAre(0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u));
  const uint32_t ones = 0xffffffffu;
  EXPECT_THAT(philox_of({ones, ones, ones, ones}, {{ones, ones}}),
              testing::ElementsAre(0x408f276du, 0x41c83b0eu, 0xa20bc7c6u, 0x6d5451fdu));
  EXPECT_THAT(
      philox_of({0x243f6a88u, 0x85a308d3u, 0x13198a2eu, 0x03707344u}, {{0xa4093822u, 0x299f31d0u}}),
      testing::ElementsAre(0xd16cfe09u, 0x94fdccebu, 0x5001e420u, 0x24126ea1u));
}

TEST(Philox, WordsDoNotDependOnTheNumberOfLanes) {
  uint32_t all[4][24];
  dropout_words<ScalarCounters, 24>(philox_key(7), 3, 100, 11, all);
  for (int lane = 0; lane < 24; ++lane) {
    uint32_t single[4][1];
    dropout_words<ScalarCounters, 1>(philox_key(7), 3, 100 + lane, 11, single);
    for (int w = 0; w < 4; ++w) EXPECT_EQ(all[w][lane], single[w][0]) << lane;
  }
}

TEST(Philox, KeepsTheRequestedFraction) {
  for (const double dropout : {0.1, 0.5, 0.9}) {
    int kept = 0;
    constexpr int kGroups = 25'000;
    for (int group = 0; group < kGroups; ++group) {
      uint32_t word[4][1];
      dropout_words<ScalarCounters, 1>(philox_key(1), 0, 0, group, word);
      for (int w = 0; w < 4; ++w) kept += word[w][0] >= dropout_threshold(dropout);
    }
    // Five standard deviations of a binomial distribution with 100,000 draws.
    const double draws = 4.0 * kGroups;
    EXPECT_NEAR(kept / draws, 1 - dropout, 5 * std::sqrt(dropout * (1 - dropout) / draws));
  }
}

TEST(Philox, ThresholdAndScaleAtTheLimits) {
  EXPECT_EQ(dropout_threshold(0.0), 0u);
  EXPECT_EQ(dropout_threshold(1.0), 0xffffffffu);
  EXPECT_EQ(dropout_keep_scale(1.0), 0.0);
  EXPECT_DOUBLE_EQ(dropout_keep_scale(0.75), 4.0);
}

}  // namespace
}  // namespace flash
