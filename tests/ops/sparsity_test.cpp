#include <ATen/Parallel.h>
#include <flash_attention/sparsity.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "ops/allocations.h"
#include "ops/testing.h"

namespace flash {
namespace {

using at::Tensor;
using testing::AllOf;
using testing::HasSubstr;
using tests::largest_difference;
using tests::message_of;

struct SparsityInputs {
  Tensor query, key, index;

  SparsityInputs(int64_t queries, int64_t keys, int64_t head_dim, int64_t samples,
                 at::ScalarType dtype) {
    torch::manual_seed(3);
    // As a projection produces them: [batch, length, heads, width] in memory.
    query = at::randn({2, queries, 3, head_dim}, dtype).transpose(1, 2);
    key = at::randn({2, keys, 3, head_dim}, dtype).transpose(1, 2);
    index = at::randint(keys, {queries, samples}, at::kLong);
  }
};

/// As in Informer's code, with gathered keys, in float64.
Tensor by_definition(const SparsityInputs& x) {
  const Tensor key = x.key.to(at::kDouble), query = x.query.to(at::kDouble);
  const Tensor sampled = key.index({at::indexing::Slice(), at::indexing::Slice(), x.index});
  const Tensor scores = at::matmul(query.unsqueeze(-2), sampled.transpose(-2, -1)).squeeze(-2);
  return std::get<0>(scores.max(-1)) - scores.sum(-1) / key.size(2);
}

TEST(Sparsity, EqualsTheDefinition) {
  for (const at::ScalarType dtype : {at::kFloat, at::kDouble}) {
    for (int64_t n = 1; n <= 70; ++n) {
      const SparsityInputs x(n, 71 - n, 1 + n * 7 % 70, 1 + n * 5 % 40, dtype);
      const Tensor got = sparsity_measurement(x.query, x.key, x.index);
      EXPECT_EQ(got.sizes(), x.query.sizes().slice(0, 3));
      EXPECT_EQ(got.scalar_type(), dtype);
      const Tensor expected = by_definition(x);
      // With few keys the divisor of the sum is small, and the results are up to some hundreds.
      const double size = std::max(1.0, expected.abs().max().item<double>());
      EXPECT_LE(largest_difference(got, expected), size * tests::tolerance(dtype));
    }
  }
}

TEST(Sparsity, SelectsTheSameQueriesAsTheDefinition) {
  const SparsityInputs x(96, 96, 32, 15, at::kDouble);
  const auto top = [](const Tensor& m) {
    return std::get<0>(std::get<1>(m.topk(15, -1, true, false)).sort(-1));
  };
  EXPECT_TRUE(at::equal(top(sparsity_measurement(x.query, x.key, x.index)), top(by_definition(x))));
}

TEST(Sparsity, ResultDoesNotDependOnStrides) {
  SparsityInputs x(33, 20, 16, 7, at::kDouble);
  const Tensor expected = sparsity_measurement(x.query, x.key, x.index);
  EXPECT_TRUE(
      at::equal(sparsity_measurement(x.query.contiguous(), x.key.contiguous(), x.index), expected));
  const auto columns_first = [](const Tensor& t) {
    return t.transpose(-2, -1).contiguous().transpose(-2, -1);
  };
  EXPECT_TRUE(at::equal(sparsity_measurement(columns_first(x.query), columns_first(x.key),
                                             x.index.t().contiguous().t()),
                        expected));
}

TEST(Sparsity, CopiesNothing) {
  const SparsityInputs x(64, 64, 32, 15, at::kFloat);
  // The minimum and the maximum of the indices are tensors of one element each.
  EXPECT_LE(
      tests::peak_beyond_result([&] { return sparsity_measurement(x.query, x.key, x.index); }),
      1024);
}

TEST(Sparsity, BitsDoNotDependOnTheNumberOfThreads) {
  const SparsityInputs x(200, 200, 32, 20, at::kFloat);
  const int threads = at::get_num_threads();
  at::set_num_threads(1);
  const Tensor alone = sparsity_measurement(x.query, x.key, x.index);
  at::set_num_threads(4);
  EXPECT_TRUE(at::equal(sparsity_measurement(x.query, x.key, x.index), alone));
  at::set_num_threads(threads);
}

TEST(Sparsity, RequiresNoGradient) {
  const SparsityInputs x(5, 5, 4, 3, at::kFloat);
  EXPECT_FALSE(sparsity_measurement(x.query.requires_grad_(), x.key, x.index).requires_grad());
}

TEST(Sparsity, EmptyTensors) {
  const SparsityInputs x(4, 4, 8, 3, at::kFloat);
  EXPECT_EQ(sparsity_measurement(x.query.narrow(0, 0, 0), x.key.narrow(0, 0, 0), x.index).numel(),
            0);
  EXPECT_EQ(sparsity_measurement(x.query.narrow(2, 0, 0), x.key, x.index.narrow(0, 0, 0)).sizes(),
            at::IntArrayRef({2, 3, 0}));
}

TEST(Sparsity, ErrorsSayWhatWasExpected) {
  const SparsityInputs x(5, 6, 4, 3, at::kFloat);
  const auto value_error = [&](const Tensor& query, const Tensor& key, const Tensor& index) {
    return message_of<c10::ValueError>([&] { sparsity_measurement(query, key, index); });
  };
  constexpr char kOp[] = "flash::sparsity_measurement: expected ";
  EXPECT_THAT(value_error(x.query, x.key.narrow(3, 0, 3), x.index),
              AllOf(HasSubstr(kOp), HasSubstr("[2, 3, 6, 3]")));
  EXPECT_THAT(value_error(x.query, x.key, x.index.narrow(0, 0, 4)),
              AllOf(HasSubstr(kOp), HasSubstr("[5, samples]"), HasSubstr("[4, 3]")));
  EXPECT_THAT(value_error(x.query, x.key, x.index + 6), AllOf(HasSubstr(kOp), HasSubstr("[0, 6)")));
  EXPECT_THAT(value_error(x.query, x.key, x.index - 6), AllOf(HasSubstr(kOp), HasSubstr("[0, 6)")));
  EXPECT_THAT(message_of<c10::TypeError>(
                  [&] { sparsity_measurement(x.query, x.key, x.index.to(at::kInt)); }),
              AllOf(HasSubstr(kOp), HasSubstr("Int")));
  EXPECT_THAT(message_of<c10::TypeError>(
                  [&] { sparsity_measurement(x.query, x.key.to(at::kDouble), x.index); }),
              AllOf(HasSubstr(kOp), HasSubstr("Double")));
}

TEST(Sparsity, KeyMustHaveTheBatchAndHeadsOfQuery) {
  const SparsityInputs x(5, 6, 4, 3, at::kFloat);
  const auto message = [&](const Tensor& key) {
    return message_of<c10::ValueError>([&] { sparsity_measurement(x.query, key, x.index); });
  };
  EXPECT_THAT(message(x.key.narrow(1, 0, 2)), HasSubstr("got [2, 3, 5, 4] and [2, 2, 6, 4]"));
  EXPECT_THAT(message(x.key.narrow(0, 0, 1)), HasSubstr("got [2, 3, 5, 4] and [1, 3, 6, 4]"));
}

}  // namespace
}  // namespace flash
