// Decode: up to 8 queries against at least 2,048 keys, which are split among the threads.

#include <ATen/Parallel.h>
#include <flash_attention/ops.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "ops/testing.h"

namespace flash {
namespace {

using at::Tensor;
using tests::Inputs;
using tests::largest_difference;
using tests::tolerance;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

/// The outputs for some thousand keys are small, so the difference is relative to the largest.
double relative_difference(const Tensor& a, const Tensor& b) {
  return largest_difference(a, b) / b.abs().max().item<double>();
}

struct DecodingOptions {
  std::string name;
  AttentionOptions options;
};

std::vector<DecodingOptions> every_decoding_option(at::ScalarType dtype, int64_t queries,
                                                   int64_t keys) {
  torch::manual_seed(23);
  const Tensor bias = at::randn({2, 1, queries, keys}, dtype);
  const Tensor mask = at::rand({queries, keys}) < 0.7;
  Tensor late = at::ones({queries, keys}, at::kBool);
  late.narrow(1, 0, 1500).fill_(false);
  const Tensor slopes = at::rand({2, 4}, dtype), sinks = at::randn({4}, dtype);
  const Tensor positions = at::randint(-1, keys + 1, {2, 4, queries}, at::kLong);
  return {
      {"none", AttentionOptions()},
      {"causal", AttentionOptions().causal(true)},
      {"positions", AttentionOptions().causal(true).query_positions(positions)},
      {"window", AttentionOptions().window({.left = 1500, .right = 3})},
      {"window within a part", AttentionOptions().causal(true).window({.left = 100})},
      {"window at positions",
       AttentionOptions().window({.left = 700, .right = 400}).query_positions(positions)},
      {"bias", AttentionOptions().bias(bias)},
      {"bias of keys", AttentionOptions().bias(bias[0][0][0])},
      {"mask", AttentionOptions().bias(mask)},
      {"mask of more than a part", AttentionOptions().bias(late)},
      {"alibi_slopes", AttentionOptions().alibi_slopes(slopes)},
      {"softcap", AttentionOptions().softcap(1.5)},
      {"sinks", AttentionOptions().sinks(sinks)},
      {"scale", AttentionOptions().scale(-0.3)},
      {"block_size", AttentionOptions().block_size(1000)},
      {"use_simd", AttentionOptions().use_simd(false)},
  };
}

class DecodingOf : public testing::TestWithParam<at::ScalarType> {};

INSTANTIATE_TEST_SUITE_P(Dtype, DecodingOf, testing::Values(at::kFloat, at::kDouble),
                         [](const auto& info) { return std::string(toString(info.param)); });

TEST_P(DecodingOf, AnyOptionEqualsStandardAttention) {
  for (const int64_t queries : {1, 5, 8}) {
    const Inputs x(GetParam(), {.queries = queries, .keys = 2500});
    for (const auto& [name, options] : every_decoding_option(GetParam(), queries, 2500)) {
      const Tensor out = attention(x.query, x.key, x.value, options);
      const Tensor expected = standard_attention(x.query, x.key, x.value, options);
      EXPECT_LE(relative_difference(out, expected), tolerance(GetParam()))
          << name << " " << queries;
    }
  }
}

TEST_P(DecodingOf, NumbersOfKeysAroundThePartSize) {
  for (const int64_t keys : {2047, 2048, 2049, 3071, 3072, 3073, 5000}) {
    for (int64_t queries = 1; queries <= 9; ++queries) {
      const int64_t head_dim = 1 + (7 * queries + keys) % 70;
      const int64_t value_dim = 1 + (5 * queries + 3 * keys) % 130;
      const Inputs x(GetParam(), {.batch = 1,
                                  .heads = 2,
                                  .queries = queries,
                                  .keys = keys,
                                  .head_dim = head_dim,
                                  .value_dim = value_dim});
      const auto options = AttentionOptions().causal(true);
      const auto [out, lse] = attention_with_lse(x.query, x.key, x.value, options);
      EXPECT_LE(relative_difference(out, standard_attention(x.query, x.key, x.value, options)),
                tolerance(GetParam()))
          << queries << " x " << keys;
      // The last query attends every key.
      const Tensor scores = at::matmul(x.query.narrow(2, queries - 1, 1), x.key.mT()) /
                            std::sqrt(static_cast<double>(head_dim));
      EXPECT_LE(relative_difference(lse.select(2, queries - 1),
                                    at::logsumexp(scores.to(at::kDouble), -1).squeeze(-1)),
                tolerance(GetParam()))
          << queries << " x " << keys;
    }
  }
}

// The exponential of a score would overflow unless the largest score is subtracted first.
TEST_P(DecodingOf, SinksAndScoresOfAnyMagnitude) {
  Inputs x(GetParam(), {.queries = 2, .keys = 3000});
  const double largest = GetParam() == at::kFloat ? 1e30 : 1e300;
  const Tensor sinks = at::tensor({-largest, -1000.0, 1000.0, largest}, GetParam());
  for (const double shift : {0.0, 500.0, -500.0}) {
    const auto options = AttentionOptions().sinks(sinks).bias(at::full({}, shift, GetParam()));
    const auto [out, lse] = attention_with_lse(x.query, x.key, x.value, options);
    const Tensor scores =
        (at::matmul(x.query, x.key.mT()) / std::sqrt(8.0) + shift).to(at::kDouble);
    const Tensor with_sink = at::cat(
        {scores, sinks.to(at::kDouble).view({1, 4, 1, 1}).expand({2, 4, 2, 1})}, /*dim=*/-1);
    const Tensor expected_lse = at::logsumexp(with_sink, -1);
    const Tensor weights = at::softmax(with_sink, -1).narrow(-1, 0, 3000);
    EXPECT_LE(relative_difference(out, at::matmul(weights, x.value.to(at::kDouble))),
              // Rounding a score of 500 changes its weight by 500 roundings.
              shift == 0 ? tolerance(GetParam()) : 100 * tolerance(GetParam()));
    EXPECT_LE(((lse.to(at::kDouble) - expected_lse) / expected_lse).abs().max().item<double>(),
              tolerance(GetParam()));
  }
}

TEST_P(DecodingOf, BitsDoNotDependOnTheNumberOfThreads) {
  const int before = at::get_num_threads();
  const Inputs x(GetParam(), {.queries = 3, .keys = 5000});
  for (const auto& [name, options] : every_decoding_option(GetParam(), 3, 5000)) {
    at::set_num_threads(1);
    const auto [expected, expected_lse] = attention_with_lse(x.query, x.key, x.value, options);
    for (const int threads : {2, 3, 8}) {
      at::set_num_threads(threads);
      const auto [out, lse] = attention_with_lse(x.query, x.key, x.value, options);
      EXPECT_TRUE(at::equal(out, expected)) << name << " on " << threads;
      EXPECT_TRUE(at::equal(lse, expected_lse)) << name << " on " << threads;
    }
  }
  at::set_num_threads(before);
}

TEST_P(DecodingOf, EveryLayoutGivesTheSameBits) {
  const Inputs x(GetParam(), {.queries = 2, .keys = 2100});
  const auto options = AttentionOptions().causal(true);
  const Tensor expected = attention(x.query, x.key, x.value, options);
  const auto heads_inside = [](const Tensor& t) {
    return t.transpose(1, 2).contiguous().transpose(1, 2);
  };
  const auto with_gaps = [](const Tensor& t) {
    return at::cat({t, t}, -1).narrow(-1, 0, t.size(-1));
  };
  const auto column_major = [](const Tensor& t) { return t.mT().contiguous().mT(); };
  EXPECT_TRUE(at::equal(
      attention(heads_inside(x.query), heads_inside(x.key), heads_inside(x.value), options),
      expected));
  EXPECT_TRUE(at::equal(
      attention(with_gaps(x.query), with_gaps(x.key), with_gaps(x.value), options), expected));
  EXPECT_TRUE(at::equal(
      attention(column_major(x.query), column_major(x.key), column_major(x.value), options),
      expected));
}

TEST_P(DecodingOf, QueryHeadsMayShareKeysAndValues) {
  const Inputs x(GetParam(), {.queries = 2, .keys = 2100});
  const Tensor key = x.key.narrow(1, 0, 2), value = x.value.narrow(1, 0, 1);
  const Tensor expected =
      attention(x.query, key.repeat_interleave(2, 1), value.repeat_interleave(4, 1));
  EXPECT_TRUE(at::equal(attention(x.query, key, value), expected));
}

TEST_P(DecodingOf, FullyMaskedRowsGiveZeros) {
  const Inputs x(GetParam(), {.queries = 3, .keys = 4000});
  Tensor mask = at::ones({3, 4000}, at::kBool);
  mask[1].fill_(false);
  const auto [out, lse] =
      attention_with_lse(x.query, x.key, x.value, AttentionOptions().bias(mask));
  EXPECT_TRUE(out.select(2, 1).eq(0).all().item<bool>());
  EXPECT_TRUE(lse.select(2, 1).eq(-kInfinity).all().item<bool>());
  EXPECT_TRUE(lse.select(2, 0).isfinite().all().item<bool>());
  EXPECT_TRUE(lse.select(2, 2).isfinite().all().item<bool>());
}

TEST_P(DecodingOf, GradientsEqualThoseOfStandardAttention) {
  const Inputs x = Inputs(GetParam(), {.queries = 4, .keys = 2300}).requires_grad();
  const Tensor sinks = at::randn({4}, GetParam()).requires_grad_();
  const std::vector<Tensor> inputs = {x.query, x.key, x.value, sinks};
  const auto options = AttentionOptions().causal(true).sinks(sinks).softcap(3.0);
  const Tensor grad = at::randn({2, 4, 4, 12}, GetParam());
  const auto flash =
      torch::autograd::grad({attention(x.query, x.key, x.value, options)}, inputs, {grad});
  const auto standard =
      torch::autograd::grad({standard_attention(x.query, x.key, x.value, options)}, inputs, {grad});
  for (size_t i = 0; i < inputs.size(); ++i) {
    EXPECT_LE(relative_difference(flash[i], standard[i]), tolerance(GetParam())) << i;
  }
}

TEST(DecodingOfSixteenBitTypes, IsComputedInFloat32AndRoundedOnce) {
  for (const at::ScalarType dtype : {at::kBFloat16, at::kHalf}) {
    for (const int64_t queries : {1, 5, 8}) {
      const Inputs x(dtype, {.queries = queries, .keys = 2500});
      const auto options = AttentionOptions().causal(true);
      const auto [out, lse] = attention_with_lse(x.query, x.key, x.value, options);
      EXPECT_EQ(out.scalar_type(), dtype);
      const auto [expected, expected_lse] = attention_with_lse(
          x.query.to(at::kDouble), x.key.to(at::kDouble), x.value.to(at::kDouble), options);
      // One rounding of each element, and the error of float32 relative to the largest.
      const double rounding = dtype == at::kHalf ? 0x1p-11 : 0x1p-8;
      const Tensor allowed = rounding * expected.abs() + tests::kOperatorFloat32 +
                             tests::tile_rounding(dtype) * expected.abs().max();
      EXPECT_TRUE(((out.to(at::kDouble) - expected).abs() <= allowed).all().item<bool>());
      EXPECT_LE(relative_difference(lse, expected_lse), tests::kOperatorFloat32);
    }
  }
}

}  // namespace
}  // namespace flash
