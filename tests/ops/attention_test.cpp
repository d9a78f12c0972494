// flash::attention, attention_with_lse, standard_attention, dropout_mask and attention_memory from
// C++.

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Parallel.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <flash_attention/ops.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <future>
#include <limits>
#include <mutex>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "ops/allocations.h"
#include "ops/options.h"
#include "ops/testing.h"

namespace flash {
namespace {

using at::Tensor;
using tests::Inputs;
using tests::largest_difference;
using tests::tolerance;

struct NamedOptions {
  std::string name;
  AttentionOptions options;
};

// Every option with a value other than its default, in the given dtype.
std::vector<NamedOptions> every_option(at::ScalarType dtype) {
  torch::manual_seed(23);
  const Tensor bias = at::randn({4, 1, 33}, dtype);
  const Tensor mask = at::rand({19, 33}) < 0.7;
  const Tensor slopes = at::rand({2, 4}, dtype), sinks = at::randn({4}, dtype);
  return {
      {"none", AttentionOptions()},
      {"bias", AttentionOptions().bias(bias)},
      {"mask", AttentionOptions().bias(mask)},
      {"causal", AttentionOptions().causal(true)},
      {"query_positions",
       AttentionOptions().causal(true).query_positions(at::arange(19, at::kLong))},
      {"window", AttentionOptions().window({.left = 9, .right = 3})},
      {"window to the left", AttentionOptions().window({.left = 5})},
      {"window and causal", AttentionOptions().causal(true).window({.left = 5, .right = 7})},
      {"alibi_slopes", AttentionOptions().alibi_slopes(slopes[0])},
      {"alibi_slopes of a batch", AttentionOptions().alibi_slopes(slopes)},
      {"softcap", AttentionOptions().softcap(1.5)},
      {"sinks", AttentionOptions().sinks(sinks)},
      {"scale", AttentionOptions().scale(-0.3)},
      {"scale zero", AttentionOptions().scale(0.0)},
      {"dropout", AttentionOptions().dropout(0.4)},
      {"block_size", AttentionOptions().block_size(7)},
      {"use_simd", AttentionOptions().use_simd(false)},
  };
}

class AttentionOf : public testing::TestWithParam<at::ScalarType> {};

INSTANTIATE_TEST_SUITE_P(Dtype, AttentionOf, testing::Values(at::kFloat, at::kDouble),
                         [](const auto& info) { return std::string(toString(info.param)); });

TEST_P(AttentionOf, AnyOptionEqualsStandardAttention) {
  const Inputs x(GetParam());
  for (const auto& [name, options] : every_option(GetParam())) {
    torch::manual_seed(5);
    const Tensor out = attention(x.query, x.key, x.value, options);
    torch::manual_seed(5);
    const Tensor expected = standard_attention(x.query, x.key, x.value, options);
    EXPECT_EQ(out.sizes(), at::IntArrayRef({2, 4, 19, 12})) << name;
    EXPECT_EQ(out.scalar_type(), GetParam()) << name;
    EXPECT_LE(largest_difference(out, expected), tolerance(GetParam())) << name;
  }
}

TEST_P(AttentionOf, WithLseGivesTheSameBitsAndTheLogSumExp) {
  const Inputs x(GetParam());
  for (const auto& [name, options] : every_option(GetParam())) {
    torch::manual_seed(5);
    const Tensor out = attention(x.query, x.key, x.value, options);
    torch::manual_seed(5);
    const auto [same, lse] = attention_with_lse(x.query, x.key, x.value, options);
    EXPECT_TRUE(at::equal(out, same)) << name;
    EXPECT_EQ(lse.sizes(), at::IntArrayRef({2, 4, 19})) << name;
  }
  const Tensor scores = at::matmul(x.query, x.key.mT()) / std::sqrt(8.0);
  const auto [out, lse] = attention_with_lse(x.query, x.key, x.value);
  EXPECT_LE(largest_difference(lse, at::logsumexp(scores, -1)), tolerance(GetParam()));
}

TEST_P(AttentionOf, StandardAttentionWithTheGuidesSignatureIsTheSame) {
  const Inputs x(GetParam());
  for (const bool causal : {false, true}) {
    const Tensor short_form = standard_attention(x.query, x.key, x.value, 0.25, causal);
    const Tensor long_form =
        standard_attention(x.query, x.key, x.value, AttentionOptions().scale(0.25).causal(causal));
    EXPECT_TRUE(at::equal(short_form, long_form));
    const auto options = AttentionOptions().scale(0.25).causal(causal);
    EXPECT_LE(largest_difference(attention(x.query, x.key, x.value, options), short_form),
              tolerance(GetParam()));
  }
}

TEST_P(AttentionOf, ThreeDimensionalInputHasOneHead) {
  const Inputs x(GetParam());
  const Tensor q = x.query.select(1, 0), k = x.key.select(1, 0), v = x.value.select(1, 0);
  const auto [out, lse] = attention_with_lse(q, k, v, AttentionOptions().causal(true));
  const auto [out4, lse4] = attention_with_lse(q.unsqueeze(1), k.unsqueeze(1), v.unsqueeze(1),
                                               AttentionOptions().causal(true));
  EXPECT_TRUE(at::equal(out, out4.squeeze(1)));
  EXPECT_TRUE(at::equal(lse, lse4.squeeze(1)));
}

TEST_P(AttentionOf, KeyAndValueMayHaveDifferentNumbersOfHeads) {
  const Inputs x(GetParam());
  const Tensor key = x.key.narrow(1, 0, 2), value = x.value.narrow(1, 0, 1);
  const Tensor out = attention(x.query, key, value);
  const Tensor expected =
      attention(x.query, key.repeat_interleave(2, 1), value.expand({2, 4, -1, -1}));
  EXPECT_TRUE(at::equal(out, expected));
}

TEST_P(AttentionOf, FullyMaskedRowsGiveZeros) {
  const Inputs x(GetParam());
  const Tensor mask = at::ones({19, 33}, at::kBool);
  mask[3].fill_(false);
  const auto [out, lse] =
      attention_with_lse(x.query, x.key, x.value, AttentionOptions().bias(mask));
  EXPECT_TRUE(out.select(2, 3).eq(0).all().item<bool>());
  const double minus_infinity = -std::numeric_limits<double>::infinity();
  EXPECT_TRUE(lse.select(2, 3).eq(minus_infinity).all().item<bool>());
  EXPECT_TRUE(lse.select(2, 4).isfinite().all().item<bool>());
}

TEST_P(AttentionOf, BitsDoNotDependOnTheNumberOfThreads) {
  const Inputs x(GetParam(), {.batch = 1, .heads = 1, .queries = 700, .keys = 700});
  const int before = at::get_num_threads();
  at::set_num_threads(1);
  const Tensor expected = attention(x.query, x.key, x.value);
  for (const int threads : {2, 5, 8}) {
    at::set_num_threads(threads);
    EXPECT_TRUE(at::equal(attention(x.query, x.key, x.value), expected)) << threads;
  }
  at::set_num_threads(before);
}

TEST(SixteenBitTypes, AreComputedInFloat32AndRoundedOnce) {
  for (const at::ScalarType dtype : {at::kBFloat16, at::kHalf}) {
    for (const int64_t queries : {1, 19}) {
      Inputs x(dtype, {.queries = queries, .keys = 130});
      x.requires_grad();
      const auto options = AttentionOptions().causal(true);
      const Tensor out = attention(x.query, x.key, x.value, options);
      out.sum().backward();
      Inputs x32(dtype, {.queries = queries, .keys = 130});
      for (Tensor* t : {&x32.query, &x32.key, &x32.value}) *t = t->to(at::kFloat);
      x32.requires_grad();
      const Tensor expected = attention(x32.query, x32.key, x32.value, options);
      expected.sum().backward();
      EXPECT_EQ(out.scalar_type(), dtype);
      // The order of the sums may differ, and with it one rounding, of elements below 4.
      const double spacing = dtype == at::kHalf ? 0x1p-9 : 0x1p-6;
      EXPECT_LE(largest_difference(out, expected.to(dtype)), spacing);
      EXPECT_LE(largest_difference(x.key.grad(), x32.key.grad().to(dtype)), spacing);
      const Tensor lse = std::get<1>(attention_with_lse(x.query, x.key, x.value, options));
      EXPECT_EQ(lse.scalar_type(), at::kFloat);
    }
  }
}

TEST(DropoutMask, IsTheMaskThatAttentionUses) {
  const Inputs x;
  torch::manual_seed(8);
  const Tensor keep = dropout_mask(2, 4, 19, 33, 0.25);
  EXPECT_EQ(keep.scalar_type(), at::kBool);
  torch::manual_seed(8);
  const Tensor out = attention(x.query, x.key, x.value, AttentionOptions().dropout(0.25));
  const Tensor scores = at::matmul(x.query, x.key.mT()) / std::sqrt(8.0);
  const Tensor weights = at::softmax(scores, -1) * keep / 0.75;
  EXPECT_LE(largest_difference(out, at::matmul(weights, x.value)), tolerance(at::kDouble));
}

TEST(DropoutMask, KeepsTheExpectedShare) {
  torch::manual_seed(9);
  const double kept = dropout_mask(2, 4, 200, 300, 0.1).to(at::kDouble).mean().item<double>();
  EXPECT_NEAR(kept, 0.9, 5 * std::sqrt(0.1 * 0.9 / (2 * 4 * 200 * 300)));
  EXPECT_TRUE(dropout_mask(1, 1, 5, 5, 0.0).all().item<bool>());
}

TEST(DropoutMask, WaitsForTheLockOfTheGenerator) {
  const auto draw = [] { return dropout_mask(1, 1, 2, 2, 0.5); };
  draw();  // the first call takes longer
  at::Generator generator = at::detail::getDefaultCPUGenerator();
  std::unique_lock lock(generator.mutex());
  std::future<Tensor> mask = std::async(std::launch::async, draw);
  // Many times the duration of a call. A slow machine cannot make this fail.
  EXPECT_TRUE(mask.wait_for(std::chrono::milliseconds(100)) == std::future_status::timeout);
  lock.unlock();
  EXPECT_EQ(mask.get().sizes(), at::IntArrayRef({1, 1, 2, 2}));
}

TEST(AttentionMemory, EqualsWhatACallAllocates) {
  for (const at::ScalarType dtype : {at::kFloat, at::kDouble}) {
    for (const auto& [queries, keys, block_size] :
         {std::tuple<int64_t, int64_t, int64_t>{1, 1, 64}, {100, 300, 64}, {1000, 50, 7}}) {
      Inputs x(dtype, {.queries = queries, .keys = keys});
      const auto options = AttentionOptions().block_size(block_size);
      const MemoryUsage usage = attention_memory(2, 4, queries, keys, 8, 12, dtype, block_size);
      EXPECT_EQ(
          tests::peak_beyond_result([&] { return attention(x.query, x.key, x.value, options); }),
          usage.forward)
          << queries << " x " << keys;
      x.requires_grad();
      const Tensor out = attention(x.query, x.key, x.value, options);
      const Tensor grad = at::ones_like(out);
      EXPECT_EQ(tests::peak_beyond_result([&] {
                  return torch::autograd::grad({out}, {x.query, x.key, x.value}, {grad},
                                               /*retain_graph=*/true);
                }),
                usage.backward)
          << queries << " x " << keys;
    }
  }
}

TEST(AttentionMemory, CountsTheTileOfASoftcap) {
  Inputs x(at::kFloat, {.queries = 200, .keys = 300});
  const auto options = AttentionOptions().softcap(2.0);
  const MemoryUsage usage = attention_memory(2, 4, 200, 300, 8, 12, at::kFloat, /*block_size=*/64,
                                             /*use_simd=*/true, /*has_bias=*/false,
                                             /*has_softcap=*/true);
  EXPECT_EQ(tests::peak_beyond_result([&] { return attention(x.query, x.key, x.value, options); }),
            usage.forward);
  x.requires_grad();
  const Tensor out = attention(x.query, x.key, x.value, options);
  const Tensor grad = at::ones_like(out);
  EXPECT_EQ(tests::peak_beyond_result([&] {
              return torch::autograd::grad({out}, {x.query, x.key, x.value}, {grad},
                                           /*retain_graph=*/true);
            }),
            usage.backward);
  const MemoryUsage uncapped = attention_memory(2, 4, 200, 300, 8, 12, at::kFloat);
  EXPECT_EQ(usage.forward, uncapped.forward);
  EXPECT_GT(usage.backward, uncapped.backward);
}

TEST(AttentionMemory, GrowsWithTheRowsAndNotWithTheirProduct) {
  // Keys and values of 2,048 positions exceed the second-level cache. From there on the scratch has
  // its full size, and only the two statistics per row grow.
  const MemoryUsage small = attention_memory(1, 1, 2048, 2048, 64, 64, at::kFloat);
  const MemoryUsage large = attention_memory(1, 1, 4096, 4096, 64, 64, at::kFloat);
  EXPECT_EQ(large.forward - small.forward, 2048 * 2 * static_cast<int64_t>(sizeof(float)));
  EXPECT_LE(large.backward, 2 * small.backward);
}

void expect_default(const std::optional<Tensor>& option, const c10::IValue& value) {
  EXPECT_TRUE(!option.has_value() && value.isNone());
}
void expect_default(const std::optional<double>& option, const c10::IValue& value) {
  EXPECT_TRUE(!option.has_value() && value.isNone());
}
void expect_default(const Window& option, const c10::IValue& value) {
  EXPECT_TRUE(option.left == -1 && option.right == -1 && value.isNone());
}
void expect_default(bool option, const c10::IValue& value) { EXPECT_EQ(option, value.toBool()); }
void expect_default(double option, const c10::IValue& value) {
  EXPECT_EQ(option, value.toDouble());
}
void expect_default(int64_t option, const c10::IValue& value) { EXPECT_EQ(option, value.toInt()); }

TEST(AttentionOptions, DefaultsAreThoseOfTheSchema) {
  const auto& schema =
      c10::Dispatcher::singleton().findSchemaOrThrow("flash::attention", "").schema();
  const AttentionOptions options;
  size_t i = 3;  // after query, key and value
  const auto expect_next = [&](const auto& option) {
    ASSERT_LT(i, schema.arguments().size());
    const c10::Argument& argument = schema.arguments()[i++];
    SCOPED_TRACE(argument.name());
    ASSERT_TRUE(argument.default_value().has_value());
    expect_default(option, *argument.default_value());
  };
  for_each_option(options, expect_next);
  EXPECT_EQ(i, schema.arguments().size());
}

}  // namespace
}  // namespace flash
