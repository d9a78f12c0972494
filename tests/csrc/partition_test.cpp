#include "csrc/generic/partition.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>
#include <tuple>
#include <utility>

namespace flash {
namespace {

BackwardParams params(Shape shape) {
  BackwardParams p = {};
  p.shape = shape;
  return p;
}

constexpr int64_t kTile = 24, kBlock = 96;

const Shape kShapes[] = {
    {1, 1, 1, 1, 4096, 4096, 64, 64}, {2, 8, 8, 8, 1000, 1000, 64, 64}, {1, 8, 2, 4, 300, 77, 8, 8},
    {1, 4, 4, 1, 97, 2000, 16, 16},   {3, 6, 3, 2, 5, 9, 8, 8},         {1, 1, 1, 1, 1, 5000, 8, 8},
    {1, 2, 2, 2, 5000, 1, 8, 8},      {0, 4, 4, 4, 10, 10, 8, 8},       {2, 2, 2, 2, 0, 10, 8, 8},
};

TEST(Partition, CoversEachQueryKeyPairExactlyOnce) {
  for (const Shape& shape : kShapes) {
    const Partition parts(params(shape), kTile, kBlock);
    int64_t pairs = 0;
    std::set<std::tuple<int64_t, int64_t, int64_t, int64_t>> corners;
    for (int64_t step = 0; step < parts.steps(); ++step) {
      for (int64_t unit = 0; unit < parts.units(); ++unit) {
        const Range b = parts.batches(unit), h = parts.heads(unit);
        const Range q = parts.queries(unit), k = parts.keys(unit, step);
        if (q.empty() || k.empty()) continue;
        pairs += (b.end - b.begin) * (h.end - h.begin) * (q.end - q.begin) * (k.end - k.begin);
        EXPECT_TRUE(corners.insert({b.begin, h.begin, q.begin, k.begin}).second);
      }
    }
    EXPECT_EQ(pairs, shape.batch * shape.heads * shape.queries * shape.keys);
  }
}

// Rows of dQ are identified by query head, those of dK and dV by their own heads. No two units of a
// step may write to the same row.
TEST(Partition, UnitsOfOneStepWriteToDisjointRows) {
  for (const Shape& shape : kShapes) {
    const Partition parts(params(shape), kTile, kBlock);
    for (int64_t step = 0; step < parts.steps(); ++step) {
      std::set<std::tuple<int, int64_t, int64_t, int64_t>> owned;
      const auto claim = [&](int kind, Range batches, Range heads, Range rows) {
        if (rows.empty()) return;
        for (int64_t b = batches.begin; b < batches.end; ++b) {
          for (int64_t h = heads.begin; h < heads.end; ++h) {
            EXPECT_TRUE(owned.insert({kind, b, h, rows.begin}).second);
          }
        }
      };
      for (int64_t unit = 0; unit < parts.units(); ++unit) {
        claim(0, parts.batches(unit), parts.heads(unit), parts.queries(unit));
        claim(1, parts.batches(unit), parts.key_heads(unit), parts.keys(unit, step));
        claim(2, parts.batches(unit), parts.value_heads(unit), parts.keys(unit, step));
      }
    }
  }
}

TEST(Partition, UnitOwnsTheKeyAndValueHeadsOfItsQueryHeads) {
  const Shape shape = {2, 12, 6, 4, 500, 500, 8, 8};
  const Partition parts(params(shape), kTile, kBlock);
  for (int64_t unit = 0; unit < parts.units(); ++unit) {
    const Range heads = parts.heads(unit), keys = parts.key_heads(unit);
    const Range values = parts.value_heads(unit);
    for (int64_t head = heads.begin; head < heads.end; ++head) {
      EXPECT_TRUE(keys.begin <= head / 2 && head / 2 < keys.end);
      EXPECT_TRUE(values.begin <= head / 3 && head / 3 < values.end);
    }
  }
}

TEST(Partition, BroadcastBiasGradientHasOneOwner) {
  float bias = 0;
  BackwardParams p = params({3, 4, 4, 4, 2000, 2000, 8, 8});
  p.grad_bias = &bias;
  const int64_t over_batch[4] = {0, 4'000'000, 2000, 1};
  std::copy(over_batch, over_batch + 4, p.grad_bias_strides);
  const Partition shared(p, kTile, kBlock);
  EXPECT_EQ(shared.batches(0).end, 3);
  EXPECT_EQ(shared.heads(0).end, 1);

  // With one bias element per head, every pair of chunks would write to it.
  const int64_t per_head[4] = {0, 1, 0, 0};
  std::copy(per_head, per_head + 4, p.grad_bias_strides);
  EXPECT_EQ(Partition(p, kTile, kBlock).steps(), 1);
}

TEST(Partition, HeadsThatShareABiasGradientHaveOneOwner) {
  float bias = 0;
  BackwardParams p = params({3, 4, 4, 4, 2000, 2000, 8, 8});
  p.grad_bias = &bias;
  const int64_t over_heads[4] = {4'000'000, 0, 2000, 1}, over_both[4] = {0, 0, 2000, 1};
  for (const auto& [strides, batches] : {std::pair(over_heads, 1), std::pair(over_both, 3)}) {
    std::copy(strides, strides + 4, p.grad_bias_strides);
    const Partition shared(p, kTile, kBlock);
    for (int64_t unit = 0; unit < shared.units(); ++unit) {
      EXPECT_EQ(shared.heads(unit).begin, 0);
      EXPECT_EQ(shared.heads(unit).end, 4);
      EXPECT_EQ(shared.batches(unit).end - shared.batches(unit).begin, batches);
    }
  }
}

TEST(Partition, OneLongSequenceIsSplitForManyCores) {
  const Partition parts(params({1, 1, 1, 1, 4096, 4096, 64, 64}), kTile, kBlock);
  EXPECT_EQ(parts.units(), 16);
}

// A causal step t > 0 has work in the last t query chunks only. Threads get contiguous ranges of
// units.
TEST(Partition, CausalStepsAreBalancedOverTwoThreads) {
  const Partition parts(params({1, 1, 1, 1, 4096, 4096, 64, 64}), kTile, kBlock);
  for (int64_t step = 1; step < parts.steps(); ++step) {
    std::map<bool, int> work;
    for (int64_t unit = 0; unit < parts.units(); ++unit) {
      const bool has_work = parts.keys(unit, step).begin < parts.queries(unit).end;
      work[unit < parts.units() / 2] += has_work;
    }
    EXPECT_LE(std::abs(work[true] - work[false]), 1) << "step " << step;
  }
}

}  // namespace
}  // namespace flash
