#include <ATen/Parallel.h>
#include <flash_attention/time_delay.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "ops/testing.h"

namespace flash {
namespace {

using at::Tensor;
using testing::AllOf;
using testing::HasSubstr;
using tests::largest_difference;
using tests::message_of;

struct DelayInputs {
  Tensor value, other, weights, delays;

  DelayInputs(int64_t batch, int64_t times, int64_t channels, int64_t count, bool shared,
              at::ScalarType dtype) {
    torch::manual_seed(3);
    value = at::randn({batch, times, channels}, dtype).requires_grad_();
    other = at::randn({batch, times, channels}, dtype).requires_grad_();
    weights = at::randn({batch, count}, dtype).requires_grad_();
    // Below 0 and above times, since a delay is taken modulo the length.
    delays = at::randint(-2 * times, 2 * times, {shared ? 1 : batch, count}, at::kLong);
  }
};

/// [B, k, T, C]: each series rolled by each of its delays.
Tensor rolled(const Tensor& series, const Tensor& delays) {
  std::vector<Tensor> all;
  for (int64_t b = 0; b < series.size(0); ++b) {
    std::vector<Tensor> one;
    for (int64_t i = 0; i < delays.size(1); ++i) {
      const int64_t delay = delays[delays.size(0) == 1 ? 0 : b][i].item<int64_t>();
      one.push_back(at::roll(series[b], -delay, 0));
    }
    all.push_back(at::stack(one));
  }
  return at::stack(all);
}

Tensor aggregation_by_definition(const Tensor& value, const Tensor& delays, const Tensor& weights) {
  return (weights.unsqueeze(-1).unsqueeze(-1) * rolled(value, delays)).sum(1);
}

Tensor correlation_by_definition(const Tensor& query, const Tensor& key, const Tensor& delays) {
  return (rolled(query, delays) * key.unsqueeze(1)).sum(2).mean(-1);
}

template <class Check>
void for_each_case(Check&& check) {
  for (const at::ScalarType dtype : {at::kFloat, at::kDouble}) {
    for (int64_t n = 1; n <= 70; n += 3) {
      check(DelayInputs(1 + n % 3, n, 1 + n * 11 % 70, 1 + n % 9, n % 2 == 0, dtype), dtype);
    }
    check(DelayInputs(2, 96, 128, 13, true, dtype), dtype);
  }
}

TEST(TimeDelay, AggregationAndItsGradientsEqualTheDefinition) {
  for_each_case([](const DelayInputs& x, at::ScalarType dtype) {
    const Tensor got = time_delay_aggregation(x.value, x.delays, x.weights);
    const Tensor expected = aggregation_by_definition(x.value, x.delays, x.weights);
    EXPECT_LE(largest_difference(got, expected), tests::tolerance(dtype));
    const Tensor grad = at::randn_like(got);
    const auto d = torch::autograd::grad({got}, {x.value, x.weights}, {grad});
    const auto e = torch::autograd::grad({expected}, {x.value, x.weights}, {grad});
    EXPECT_LE(largest_difference(d[0], e[0]), tests::tolerance(dtype));
    // A sum of up to 12,288 products.
    EXPECT_LE(largest_difference(d[1], e[1]), 10 * tests::tolerance(dtype));
  });
}

TEST(TimeDelay, CorrelationAndItsGradientsEqualTheDefinition) {
  for_each_case([](const DelayInputs& x, at::ScalarType dtype) {
    const Tensor got = time_delay_correlation(x.value, x.other, x.delays);
    const Tensor expected = correlation_by_definition(x.value, x.other, x.delays);
    EXPECT_EQ(got.sizes(), expected.sizes());
    EXPECT_LE(largest_difference(got, expected), tests::tolerance(dtype));
    const Tensor grad = at::randn_like(got);
    const auto d = torch::autograd::grad({got}, {x.value, x.other}, {grad});
    const auto e = torch::autograd::grad({expected}, {x.value, x.other}, {grad});
    for (int i = 0; i < 2; ++i) EXPECT_LE(largest_difference(d[i], e[i]), tests::tolerance(dtype));
  });
}

TEST(TimeDelay, HasSecondDerivatives) {
  const DelayInputs x(2, 12, 5, 4, false, at::kDouble);
  const auto second = [&](auto&& aggregate, auto&& correlate) {
    const Tensor loss = aggregate(x.value, x.delays, x.weights).pow(3).sum() +
                        correlate(x.value, x.other, x.delays).pow(2).sum();
    const auto d = torch::autograd::grad({loss}, {x.value, x.weights}, {}, {}, true);
    return torch::autograd::grad({d[0].pow(2).sum() + d[1].pow(2).sum()},
                                 {x.value, x.weights, x.other});
  };
  const auto got = second(time_delay_aggregation, time_delay_correlation);
  const auto expected = second(aggregation_by_definition, correlation_by_definition);
  // Elements are up to 1e5.
  for (int i = 0; i < 3; ++i) EXPECT_LE(largest_difference(got[i], expected[i]), 1e-7);
}

TEST(TimeDelay, GradientOfOneInputAlone) {
  const DelayInputs x(2, 9, 5, 3, true, at::kDouble);
  const Tensor weights = x.weights.detach(), value = x.value.detach(), other = x.other.detach();
  const auto gradient = [](const Tensor& of, const Tensor& at) {
    return torch::autograd::grad({of.pow(2).sum()}, {at})[0];
  };
  EXPECT_LE(
      largest_difference(gradient(time_delay_aggregation(x.value, x.delays, weights), x.value),
                         gradient(aggregation_by_definition(x.value, x.delays, weights), x.value)),
      tests::kOperatorFloat64);
  EXPECT_LE(largest_difference(
                gradient(time_delay_aggregation(value, x.delays, x.weights), x.weights),
                gradient(aggregation_by_definition(value, x.delays, x.weights), x.weights)),
            10 * tests::kOperatorFloat64);
  EXPECT_LE(
      largest_difference(gradient(time_delay_correlation(x.value, other, x.delays), x.value),
                         gradient(correlation_by_definition(x.value, other, x.delays), x.value)),
      tests::kOperatorFloat64);
  EXPECT_LE(
      largest_difference(gradient(time_delay_correlation(value, x.other, x.delays), x.other),
                         gradient(correlation_by_definition(value, x.other, x.delays), x.other)),
      tests::kOperatorFloat64);
}

TEST(TimeDelay, ResultDoesNotDependOnStrides) {
  const DelayInputs x(3, 21, 10, 4, false, at::kDouble);
  const Tensor expected = time_delay_aggregation(x.value, x.delays, x.weights);
  const Tensor correlation = time_delay_correlation(x.value, x.other, x.delays);
  const auto strided = [](const Tensor& t) {
    return t.transpose(1, 2).contiguous().transpose(1, 2);
  };
  const auto padded = [](const Tensor& t) {
    return at::constant_pad_nd(t, {1, 2}).narrow(2, 1, t.size(2));
  };
  EXPECT_TRUE(at::equal(time_delay_aggregation(strided(x.value), x.delays.t().contiguous().t(),
                                               x.weights.t().contiguous().t()),
                        expected));
  EXPECT_TRUE(at::equal(time_delay_aggregation(padded(x.value), x.delays, x.weights), expected));
  EXPECT_TRUE(
      at::equal(time_delay_correlation(padded(x.value), strided(x.other), x.delays), correlation));
}

TEST(TimeDelay, BitsDoNotDependOnTheNumberOfThreads) {
  const DelayInputs x(8, 100, 64, 9, false, at::kFloat);
  const auto run = [&] {
    return std::pair(time_delay_aggregation(x.value, x.delays, x.weights),
                     time_delay_correlation(x.value, x.other, x.delays));
  };
  const int threads = at::get_num_threads();
  at::set_num_threads(1);
  const auto alone = run();
  at::set_num_threads(4);
  const auto together = run();
  at::set_num_threads(threads);
  EXPECT_TRUE(at::equal(alone.first, together.first));
  EXPECT_TRUE(at::equal(alone.second, together.second));
}

TEST(TimeDelay, EmptyTensors) {
  const Tensor delays = at::ones({1, 2}, at::kLong);
  for (const auto& [batch, times] : {std::pair<int64_t, int64_t>(0, 5), {3, 0}}) {
    const Tensor value = at::ones({batch, times, 4}), weights = at::ones({batch, 2});
    EXPECT_EQ(time_delay_aggregation(value, delays, weights).sizes(), value.sizes());
    EXPECT_TRUE(at::equal(time_delay_correlation(value, value, delays), at::zeros({batch, 2})));
  }
  const Tensor value = at::ones({3, 5, 4}), none = at::ones({1, 0}, at::kLong);
  EXPECT_TRUE(
      at::equal(time_delay_aggregation(value, none, at::ones({3, 0})), at::zeros_like(value)));
  EXPECT_EQ(time_delay_correlation(value, value, none).sizes(), at::IntArrayRef({3, 0}));
}

TEST(TimeDelay, ErrorsSayWhatWasExpected) {
  const DelayInputs x(3, 5, 4, 2, false, at::kFloat);
  const auto value_error = [&](const Tensor& value, const Tensor& delays, const Tensor& weights) {
    return message_of<c10::ValueError>([&] { time_delay_aggregation(value, delays, weights); });
  };
  constexpr char kOp[] = "flash::time_delay_aggregation: expected ";
  EXPECT_THAT(value_error(x.value[0], x.delays, x.weights),
              AllOf(HasSubstr(kOp), HasSubstr("[5, 4]")));
  EXPECT_THAT(value_error(x.value, x.delays.narrow(0, 0, 2), x.weights),
              AllOf(HasSubstr(kOp), HasSubstr("[3, k]"), HasSubstr("[2, 2]")));
  EXPECT_THAT(value_error(x.value, x.delays, x.weights.narrow(1, 0, 1)),
              AllOf(HasSubstr(kOp), HasSubstr("weights [3, 2]"), HasSubstr("[3, 1]")));
  EXPECT_THAT(message_of<c10::TypeError>(
                  [&] { time_delay_aggregation(x.value, x.delays.to(at::kInt), x.weights); }),
              AllOf(HasSubstr(kOp), HasSubstr("Int")));
  EXPECT_THAT(message_of<c10::TypeError>(
                  [&] { time_delay_aggregation(x.value, x.delays, x.weights.to(at::kDouble)); }),
              AllOf(HasSubstr(kOp), HasSubstr("Double")));
  EXPECT_THAT(message_of<c10::ValueError>(
                  [&] { time_delay_correlation(x.value, x.other.narrow(1, 0, 4), x.delays); }),
              AllOf(HasSubstr("flash::time_delay_correlation: expected "), HasSubstr("[3, 4, 4]")));
}

TEST(TimeDelay, CorrelationErrorsSayWhatWasExpected) {
  const DelayInputs x(3, 5, 4, 2, false, at::kFloat);
  constexpr char kOp[] = "flash::time_delay_correlation: expected ";
  const auto type_error = [&](const Tensor& query, const Tensor& key) {
    return message_of<c10::TypeError>([&] { time_delay_correlation(query, key, x.delays); });
  };
  EXPECT_THAT(type_error(x.value, x.other.to(at::kDouble)),
              AllOf(HasSubstr(kOp), HasSubstr("the same dtype, got Float and Double")));
  EXPECT_THAT(type_error(x.value.to(at::kHalf), x.other.to(at::kHalf)),
              AllOf(HasSubstr(kOp), HasSubstr("float32 or float64, got Half")));
  EXPECT_THAT(message_of<c10::ValueError>(
                  [&] { time_delay_correlation(x.value, x.other, x.delays.narrow(0, 0, 2)); }),
              AllOf(HasSubstr(kOp), HasSubstr("[3, k]"), HasSubstr("[2, 2]")));
}

}  // namespace
}  // namespace flash
