// KeyValueCache from C++: step by step, sequences of unequal lengths, errors.

#include <flash_attention/key_value_cache.h>
#include <flash_attention/ops.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "ops/testing.h"

namespace flash {
namespace {

using at::Tensor;
using testing::HasSubstr;
using tests::largest_difference;
using tests::message_of;
using tests::tolerance;

constexpr int64_t kCacheHeads = 4, kCacheKeyHeads = 2, kCacheWidth = 8, kCacheValueWidth = 6;

struct Rows {
  Tensor query, key, value;

  Rows(int64_t batch, int64_t positions, at::ScalarType dtype = at::kDouble)
      : query(at::randn({batch, kCacheHeads, positions, kCacheWidth}, dtype)),
        key(at::randn({batch, kCacheKeyHeads, positions, kCacheWidth}, dtype)),
        value(at::randn({batch, 1, positions, kCacheValueWidth}, dtype)) {}

  Rows(const Tensor& q, const Tensor& k, const Tensor& v) : query(q), key(k), value(v) {}

  /// Positions first … first + count - 1 of sequences batch … batch + batches - 1.
  Rows part(int64_t first, int64_t count) const {
    return {query.narrow(2, first, count), key.narrow(2, first, count),
            value.narrow(2, first, count)};
  }
  Rows of(int64_t batch) const {
    return {query.narrow(0, batch, 1), key.narrow(0, batch, 1), value.narrow(0, batch, 1)};
  }
};

KeyValueCache cache_of(int64_t batch, int64_t capacity, at::ScalarType dtype = at::kDouble) {
  return {batch, kCacheKeyHeads, capacity, kCacheWidth, kCacheValueWidth, /*value_heads=*/1, dtype};
}

Tensor counts_of(std::vector<int64_t> counts) { return at::tensor(counts, at::kLong); }

TEST(KeyValueCache, StepByStepEqualsOneCall) {
  torch::manual_seed(1);
  for (const AttentionOptions& options :
       {AttentionOptions(), AttentionOptions().window({.left = 7, .right = 0}),
        AttentionOptions().softcap(2.0).scale(0.3)}) {
    const Rows all(3, 40);
    const Tensor expected =
        attention(all.query, all.key, all.value, AttentionOptions(options).causal(true));
    KeyValueCache cache = cache_of(3, 40);
    int64_t done = 0;
    for (const int64_t count : {17, 1, 1, 5, 1, 8, 7}) {
      const Rows now = all.part(done, count);
      cache.append(now.key, now.value);
      EXPECT_LE(
          largest_difference(cache.attention(now.query, options), expected.narrow(2, done, count)),
          tolerance(at::kDouble))
          << done;
      done += count;
    }
    EXPECT_TRUE(at::equal(cache.lengths(), counts_of({40, 40, 40})));
    EXPECT_TRUE(at::equal(cache.key(), all.key));
    EXPECT_TRUE(at::equal(cache.value(), all.value));
  }
}

TEST(KeyValueCache, LongSequencesAreDecodedWithSplitKeys) {
  torch::manual_seed(2);
  for (const at::ScalarType dtype : {at::kFloat, at::kDouble}) {
    const Rows all(2, 3000, dtype);
    KeyValueCache cache = cache_of(2, 4000, dtype);
    cache.append(all.key, all.value);
    for (const int64_t queries : {1, 3, 8}) {
      const Tensor query = all.query.narrow(2, 3000 - queries, queries);
      const Tensor expected =
          standard_attention(query, all.key, all.value, AttentionOptions().causal(true));
      EXPECT_LE(largest_difference(cache.attention(query), expected), tolerance(dtype));
    }
  }
}

// With equal lengths, only the counts say which queries are at the last positions.
TEST(KeyValueCache, CountsSayWhichQueriesAreTheLastPositions) {
  torch::manual_seed(3);
  for (const std::vector<int64_t>& appended : {std::vector<int64_t>{20, 3, 11}, {20, 20, 20}}) {
    for (const std::vector<int64_t>& asked : {std::vector<int64_t>{2, 3, 1}, {1, 0, 3}}) {
      const Rows all(3, 20);
      KeyValueCache cache = cache_of(3, 64);
      cache.append(all.key, all.value, counts_of(appended));
      EXPECT_TRUE(at::equal(cache.lengths(), counts_of(appended)));
      const Tensor query = at::randn({3, kCacheHeads, 3, kCacheWidth}, at::kDouble);
      const Tensor found = cache.attention(query, {}, counts_of(asked));
      for (int64_t b = 0; b < 3; ++b) {
        const auto n = static_cast<size_t>(b);
        if (asked[n] == 0) continue;
        const Rows own = all.of(b).part(0, appended[n]);
        const Tensor expected = attention(query.narrow(0, b, 1).narrow(2, 0, asked[n]), own.key,
                                          own.value, AttentionOptions().causal(true));
        EXPECT_LE(largest_difference(found.narrow(0, b, 1).narrow(2, 0, asked[n]), expected),
                  tolerance(at::kDouble))
            << "sequence " << b << " of " << appended[n] << ", queries " << asked[n];
      }
    }
  }
}

TEST(KeyValueCache, TruncateShortensOnlyLongerSequences) {
  torch::manual_seed(4);
  const Rows all(3, 20), more(3, 1);
  KeyValueCache cache = cache_of(3, 64);
  cache.append(all.key, all.value, counts_of({20, 3, 11}));
  cache.truncate(7);
  EXPECT_TRUE(at::equal(cache.lengths(), counts_of({7, 3, 7})));
  EXPECT_EQ(cache.key().size(2), 7);
  cache.append(more.key, more.value);
  const Tensor found = cache.attention(more.query);
  for (int64_t b = 0; b < 3; ++b) {
    const Rows own = all.of(b).part(0, b == 1 ? 3 : 7);
    const Tensor expected = attention(more.of(b).query, at::cat({own.key, more.of(b).key}, 2),
                                      at::cat({own.value, more.of(b).value}, 2));
    EXPECT_LE(largest_difference(found.narrow(0, b, 1), expected), tolerance(at::kDouble)) << b;
  }
  cache.truncate(0);
  EXPECT_TRUE(at::equal(cache.lengths(), counts_of({0, 0, 0})));
}

TEST(KeyValueCache, LengthsAreACopy) {
  const Rows rows(2, 8);
  KeyValueCache cache = cache_of(2, 10);
  cache.append(rows.key, rows.value);
  const Tensor lengths = cache.lengths();
  lengths.add_(1);
  EXPECT_TRUE(at::equal(cache.lengths(), counts_of({8, 8})));
  cache.truncate(3);
  EXPECT_TRUE(at::equal(lengths, counts_of({9, 9})));
}

TEST(KeyValueCache, RefusesQueryPositions) {
  const Rows rows(2, 8);
  KeyValueCache cache = cache_of(2, 10);
  cache.append(rows.key, rows.value);
  const auto options = AttentionOptions().query_positions(at::arange(8, at::kLong));
  EXPECT_THAT(message_of<c10::ValueError>([&] { cache.attention(rows.query, options); }),
              HasSubstr("flash::KeyValueCache: expected no query_positions"));
}

TEST(KeyValueCache, StoresSixteenBitTypesUnchanged) {
  torch::manual_seed(5);
  for (const at::ScalarType dtype : {at::kBFloat16, at::kHalf}) {
    const Rows all(2, 2200, dtype);
    KeyValueCache cache = cache_of(2, 2200, dtype);
    cache.append(all.key, all.value);
    EXPECT_TRUE(at::equal(cache.key(), all.key));
    const Tensor query = all.query.narrow(2, 2198, 2);
    EXPECT_TRUE(at::equal(cache.attention(query),
                          attention(query, all.key, all.value, AttentionOptions().causal(true))));
  }
}

TEST(KeyValueCache, RefusedArgumentsChangeNothing) {
  torch::manual_seed(6);
  const Rows rows(2, 8);
  KeyValueCache cache = cache_of(2, 10);
  cache.append(rows.key, rows.value);
  const Tensor before = cache.key().clone();
  const auto message = [&](auto&& call) { return message_of<c10::ValueError>(call); };
  EXPECT_THAT(message([&] { cache.append(rows.key, rows.value); }),
              HasSubstr("at most 10 positions of a sequence, got 16"));
  EXPECT_THAT(message([&] { cache.append(rows.key, rows.value.narrow(2, 0, 7)); }),
              HasSubstr("got 8 and 7"));
  EXPECT_THAT(message([&] {
                cache.append(rows.key, rows.value, counts_of({1, 9}));
              }),
              HasSubstr("got 1 to 9"));
  EXPECT_THAT(message([&] {
                cache.append(rows.key, rows.value, counts_of({-1, 1}));
              }),
              HasSubstr("got -1 to 1"));
  EXPECT_THAT(message([&] {
                cache.attention(at::randn({2, kCacheHeads, 9, kCacheWidth}, at::kDouble));
              }),
              HasSubstr("queries of positions in the cache, got 9"));
  EXPECT_THAT(message([&] { cache.truncate(-1); }), HasSubstr("got -1"));
  EXPECT_TRUE(at::equal(cache.lengths(), counts_of({8, 8})));
  EXPECT_TRUE(at::equal(cache.key(), before));
}

}  // namespace
}  // namespace flash
