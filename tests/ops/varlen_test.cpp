// Packed sequences: each gives the results of a call of its own, forward and backward.

#include <ATen/Parallel.h>
#include <flash_attention/ops.h>
#include <flash_attention/varlen_attention.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "ops/testing.h"

namespace flash {
namespace {

using at::Tensor;
using testing::AllOf;
using testing::HasSubstr;
using testing::StartsWith;
using tests::largest_difference;
using tests::message_of;
using tests::tolerance;

// Empty sequences at both ends and in the middle, one row, more queries than keys, decode, several
// tiles and chunks.
const std::vector<int64_t> kQueries = {0, 5, 1, 0, 70, 33, 2, 3, 300, 0};
const std::vector<int64_t> kKeys = {3, 9, 1, 0, 31, 200, 0, 2100, 310, 0};
constexpr int64_t kHeads = 4, kKeyHeads = 2, kValueHeads = 1, kWidth = 8, kValueWidth = 12;

int64_t sum(const std::vector<int64_t>& lengths) {
  int64_t result = 0;
  for (const int64_t n : lengths) result += n;
  return result;
}

Tensor starts(const std::vector<int64_t>& lengths, at::ScalarType dtype = at::kLong) {
  std::vector<int64_t> offsets = {0};
  for (const int64_t n : lengths) offsets.push_back(offsets.back() + n);
  return at::tensor(offsets, at::kLong).to(dtype);
}

/// Leaves: query, key, value, and slopes and sinks of every sequence.
struct Packed {
  std::vector<Tensor> all;

  explicit Packed(at::ScalarType dtype) {
    torch::manual_seed(4);
    const auto count = static_cast<int64_t>(kQueries.size());
    all = {at::randn({sum(kQueries), kHeads, kWidth}, dtype),
           at::randn({sum(kKeys), kKeyHeads, kWidth}, dtype),
           at::randn({sum(kKeys), kValueHeads, kValueWidth}, dtype),
           at::rand({count, kHeads}, dtype) / 4, at::randn({count, kHeads}, dtype)};
    for (Tensor& t : all) t.requires_grad_();
  }
  const Tensor& query() const { return all[0]; }
  const Tensor& key() const { return all[1]; }
  const Tensor& value() const { return all[2]; }
  const Tensor& slopes() const { return all[3]; }
  const Tensor& sinks() const { return all[4]; }

  Tensor attention(AttentionOptions options, at::ScalarType offsets = at::kLong) const {
    return varlen_attention(query(), key(), value(), starts(kQueries, offsets),
                            starts(kKeys, offsets), options.alibi_slopes(slopes()).sinks(sinks()));
  }

  Tensor one_by_one(AttentionOptions options) const {
    const auto queries = query().split_with_sizes(kQueries), keys = key().split_with_sizes(kKeys),
               values = value().split_with_sizes(kKeys);
    std::vector<Tensor> out;
    const auto heads = [](const Tensor& t) { return t.transpose(0, 1).unsqueeze(0); };
    for (size_t n = 0; n < kQueries.size(); ++n) {
      const auto i = static_cast<int64_t>(n);
      options.alibi_slopes(slopes()[i]).sinks(sinks()[i]);
      out.push_back(
          flash::attention(heads(queries[n]), heads(keys[n]), heads(values[n]), options)[0]
              .transpose(0, 1));
    }
    return at::cat(out);
  }
};

std::vector<Tensor> gradients(const Tensor& out, const Packed& x) {
  torch::manual_seed(5);
  return torch::autograd::grad({out}, x.all, {at::randn(out.sizes(), out.scalar_type())});
}

class VarlenOf : public testing::TestWithParam<at::ScalarType> {};

INSTANTIATE_TEST_SUITE_P(Dtype, VarlenOf, testing::Values(at::kFloat, at::kDouble),
                         [](const auto& info) { return std::string(toString(info.param)); });

TEST_P(VarlenOf, EachSequenceEqualsACallOfItsOwn) {
  const Packed x(GetParam());
  for (const AttentionOptions& options :
       {AttentionOptions(), AttentionOptions().causal(true),
        AttentionOptions().window({.left = 6, .right = 2}), AttentionOptions().softcap(1.5),
        AttentionOptions().scale(-0.3).block_size(7),
        AttentionOptions().causal(true).window({.left = 40}).use_simd(false)}) {
    const Tensor out = x.attention(options), expected = x.one_by_one(options);
    // If `attention` splits the keys, it sums in another order.
    EXPECT_LE(largest_difference(out, expected), tolerance(GetParam()));
    const auto found = gradients(out, x), wanted = gradients(expected, x);
    for (size_t i = 0; i < found.size(); ++i) {
      EXPECT_LE(largest_difference(found[i], wanted[i]),
                tolerance(GetParam()) * wanted[i].abs().max().item<double>())
          << i;
    }
  }
}

TEST_P(VarlenOf, OffsetsMayBeInt32) {
  const Packed x(GetParam());
  const auto options = AttentionOptions().causal(true);
  EXPECT_TRUE(at::equal(x.attention(options, at::kInt), x.attention(options)));
}

TEST_P(VarlenOf, BitsDoNotDependOnTheNumberOfThreads) {
  const Packed x(GetParam());
  const int before = at::get_num_threads();
  const auto options = AttentionOptions().causal(true).softcap(2.0);
  at::set_num_threads(1);
  const Tensor expected = x.attention(options);
  const auto expected_gradients = gradients(expected, x);
  for (const int threads : {2, 3, 8}) {
    at::set_num_threads(threads);
    const Tensor out = x.attention(options);
    EXPECT_TRUE(at::equal(out, expected)) << threads;
    const auto found = gradients(out, x);
    for (size_t i = 0; i < found.size(); ++i) {
      EXPECT_TRUE(at::equal(found[i], expected_gradients[i])) << i << " on " << threads;
    }
  }
  at::set_num_threads(before);
}

// If the values are the identity matrix, the output is the weights and shows which of them are
// dropped. The same seed drops the same weights with any values.
TEST(Varlen, ForwardAndBackwardUseOneDropoutMask) {
  constexpr int64_t kLength = 40;
  constexpr double kDropout = 0.3;
  torch::manual_seed(6);
  const Tensor cuts = at::tensor({int64_t{0}, kLength, 2 * kLength}, at::kLong);
  const auto leaf = [](std::vector<int64_t> shape) {
    return at::randn(shape, at::kDouble).requires_grad_();
  };
  const Tensor query = leaf({2 * kLength, 2, kWidth}), key = leaf({2 * kLength, 2, kWidth}),
               value = leaf({2 * kLength, 2, kWidth});
  const Tensor grad = at::randn({2 * kLength, 2, kWidth}, at::kDouble);
  const auto options = AttentionOptions().dropout(kDropout);

  const Tensor identity =
      at::eye(kLength, at::kDouble).repeat({2, 1}).unsqueeze(1).expand({-1, 2, -1});
  torch::manual_seed(7);
  const Tensor dropped =
      varlen_attention(query.detach(), key.detach(), identity, cuts, cuts, options);
  const Tensor keep = dropped.ne(0).to(at::kDouble);            // [2 L, heads, L]
  EXPECT_NEAR(keep.mean().item<double>(), 1 - kDropout, 0.03);  // five standard deviations
  EXPECT_FALSE(at::equal(keep.narrow(0, 0, kLength), keep.narrow(0, kLength, kLength)));
  EXPECT_FALSE(at::equal(keep.select(1, 0), keep.select(1, 1)));

  torch::manual_seed(7);
  const Tensor out = varlen_attention(query, key, value, cuts, cuts, options);
  const auto found = torch::autograd::grad({out}, {query, key, value}, {grad});
  std::vector<Tensor> parts;
  for (int64_t n = 0; n < 2; ++n) {
    const auto rows = [&](const Tensor& t) {
      return t.narrow(0, n * kLength, kLength).transpose(0, 1);
    };
    const Tensor scores =
        at::matmul(rows(query), rows(key).mT()) / std::sqrt(static_cast<double>(kWidth));
    const Tensor weights = at::softmax(scores, -1) * rows(keep) / (1 - kDropout);
    parts.push_back(at::matmul(weights, rows(value)).transpose(0, 1));
  }
  const Tensor expected = at::cat(parts);
  EXPECT_LE(largest_difference(out, expected), tolerance(at::kDouble));
  const auto wanted = torch::autograd::grad({expected}, {query, key, value}, {grad});
  for (size_t i = 0; i < found.size(); ++i) {
    EXPECT_LE(largest_difference(found[i], wanted[i]), 10 * tolerance(at::kDouble)) << i;
  }
}

TEST(Varlen, SixteenBitTypesAreComputedInFloat32AndRoundedOnce) {
  for (const at::ScalarType dtype : {at::kBFloat16, at::kHalf}) {
    torch::manual_seed(8);
    const Tensor cuts = at::tensor({0, 5, 5, 90}, at::kInt);
    std::vector<Tensor> inputs, doubles;
    for (int i = 0; i < 3; ++i) {
      inputs.push_back(at::randn({90, 2, kWidth}, dtype).requires_grad_());
      doubles.push_back(inputs.back().detach().to(at::kDouble).requires_grad_());
    }
    const Tensor grad = at::randn({90, 2, kWidth}, dtype);
    const auto options = AttentionOptions().causal(true);
    const auto call = [&](const std::vector<Tensor>& x) {
      return varlen_attention(x[0], x[1], x[2], cuts, cuts, options);
    };
    const Tensor out = call(inputs), expected = call(doubles);
    const auto found = torch::autograd::grad({out}, inputs, {grad});
    const auto wanted = torch::autograd::grad({expected}, doubles, {grad.to(at::kDouble)});
    // One rounding of each element, and the error of float32 with elements of up to 10.
    const double rounding = dtype == at::kHalf ? 0x1p-11 : 0x1p-8;
    const auto expect_rounded = [&](const Tensor& rounded, const Tensor& exact) {
      EXPECT_EQ(rounded.scalar_type(), dtype);
      const Tensor allowed = rounding * exact.abs() + 2 * tests::kOperatorFloat32 +
                             tests::tile_rounding(dtype) * exact.abs().max();
      EXPECT_TRUE(((rounded.to(at::kDouble) - exact).abs() <= allowed).all().item<bool>());
    };
    expect_rounded(out, expected);
    for (size_t i = 0; i < found.size(); ++i) expect_rounded(found[i], wanted[i]);
  }
}

TEST(Varlen, RefusesOffsetsThatDoNotFit) {
  const Tensor x = at::randn({9, 2, 4});
  const auto message = [&](const std::vector<int64_t>& offsets) {
    const Tensor cuts = at::tensor(offsets, at::kLong);
    return message_of<c10::ValueError>([&] { varlen_attention(x, x, x, cuts, cuts); });
  };
  const char* const expected = "flash::varlen_attention: expected";
  EXPECT_THAT(message({0, 10}), AllOf(StartsWith(expected), HasSubstr("0 to 10")));
  EXPECT_THAT(message({1, 9}), AllOf(StartsWith(expected), HasSubstr("1 to 9")));
  EXPECT_THAT(message({0, 5, 4, 9}), AllOf(StartsWith(expected), HasSubstr("5 and then 4")));
  EXPECT_THAT(message({0, -5, 9}), AllOf(StartsWith(expected), HasSubstr("0 and then -5")));
  EXPECT_THAT(message({}), StartsWith(expected));
}

}  // namespace
}  // namespace flash
