// Invalid arguments from C++: the type of the exception, and a message with the values. All
// messages are tested in tests/python/robustness/test_errors.py; both go through the same check.

#include <flash_attention/ops.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "ops/testing.h"

namespace flash {
namespace {

using at::Tensor;
using testing::AllOf;
using testing::HasSubstr;
using testing::StartsWith;
using tests::Inputs;
using tests::message_of;

constexpr char kExpected[] = "flash::attention: expected ";

TEST(Errors, KeyAndValueOfDifferentLengths) {
  const Tensor query = at::randn({1, 1, 16, 8}), key = at::randn({1, 1, 16, 8});
  const Tensor value = at::randn({1, 1, 4'000'000, 1});
  const auto matcher =
      AllOf(StartsWith(kExpected), HasSubstr("one length"), HasSubstr("got 16 and 4000000"));
  EXPECT_THAT(message_of<c10::ValueError>([&] { attention(query, key, value); }), matcher);
  EXPECT_THAT(message_of<c10::ValueError>([&] { attention_with_lse(query, key, value); }), matcher);
  EXPECT_THAT(message_of<c10::ValueError>([&] { standard_attention(query, key, value); }), matcher);
}

TEST(Errors, WrongDtypesAreTypeErrors) {
  const Inputs x;
  EXPECT_THAT(
      message_of<c10::TypeError>([&] { attention(x.query.to(at::kFloat), x.key, x.value); }),
      AllOf(StartsWith(kExpected), HasSubstr("Float"), HasSubstr("Double")));
  EXPECT_THAT(message_of<c10::TypeError>([&] {
                attention(x.query.to(at::kInt), x.key.to(at::kInt), x.value.to(at::kInt));
              }),
              AllOf(StartsWith(kExpected), HasSubstr("Int")));
  const auto int_bias = AttentionOptions().bias(at::zeros({19, 33}, at::kLong));
  EXPECT_THAT(message_of<c10::TypeError>([&] { attention(x.query, x.key, x.value, int_bias); }),
              AllOf(StartsWith(kExpected), HasSubstr("bias"), HasSubstr("Long")));
}

TEST(Errors, BiasOfASixteenBitQueryIsOfItsTypeOrFloat) {
  const Inputs x(at::kBFloat16);
  const auto with_bias_of = [&](at::ScalarType dtype) {
    return attention(x.query, x.key, x.value, AttentionOptions().bias(at::zeros({33}, dtype)));
  };
  EXPECT_TRUE(with_bias_of(at::kFloat).equal(with_bias_of(at::kBFloat16)));
  EXPECT_THAT(message_of<c10::TypeError>([&] { with_bias_of(at::kHalf); }),
              AllOf(StartsWith(kExpected), HasSubstr("BFloat16 as query, or Float, got Half")));
}

TEST(Errors, BadOptionsAreValueErrors) {
  const Inputs x;
  const auto message = [&](const AttentionOptions& options) {
    return message_of<c10::ValueError>([&] { attention(x.query, x.key, x.value, options); });
  };
  EXPECT_THAT(message(AttentionOptions().dropout(-0.1)),
              AllOf(StartsWith(kExpected), HasSubstr("dropout"), HasSubstr("-0.1")));
  EXPECT_THAT(message(AttentionOptions().dropout(std::nan(""))), HasSubstr("nan"));
  EXPECT_THAT(message(AttentionOptions().block_size(0)),
              AllOf(StartsWith(kExpected), HasSubstr("block_size"), HasSubstr("got 0")));
  EXPECT_THAT(message(AttentionOptions().bias(at::zeros({18, 33}, at::kDouble))),
              AllOf(StartsWith(kExpected), HasSubstr("[2, 4, 19, 33]"), HasSubstr("[18, 33]")));
  EXPECT_THAT(message(AttentionOptions().window({.left = -2, .right = 0})),
              AllOf(StartsWith(kExpected), HasSubstr("window"), HasSubstr("got (-2, 0)")));
  EXPECT_THAT(message(AttentionOptions().alibi_slopes(at::zeros({3}, at::kDouble))),
              AllOf(StartsWith(kExpected), HasSubstr("alibi_slopes"), HasSubstr("got [3]")));
  EXPECT_THAT(message(AttentionOptions().softcap(-1.0)),
              AllOf(StartsWith(kExpected), HasSubstr("softcap"), HasSubstr("got -1")));
  EXPECT_THAT(message(AttentionOptions().sinks(at::zeros({2, 3}, at::kDouble))),
              AllOf(StartsWith(kExpected), HasSubstr("sinks"), HasSubstr("got [2, 3]")));
  EXPECT_THAT(message(AttentionOptions().query_positions(at::zeros({18}, at::kLong))),
              AllOf(StartsWith(kExpected), HasSubstr("query_positions"), HasSubstr("[18]")));
}

TEST(Errors, HeadsThatDoNotDivide) {
  const Inputs x;
  const Tensor three = x.key.narrow(1, 0, 3);
  EXPECT_THAT(message_of<c10::ValueError>([&] { attention(x.query, three, x.value); }),
              AllOf(StartsWith(kExpected), HasSubstr("multiple"), HasSubstr("got 3")));
}

TEST(Errors, MetaTensorsGiveTheSameMessage) {
  const Inputs x;
  const Tensor shorter = x.value.narrow(2, 0, 32);
  const auto on_cpu = message_of<c10::ValueError>([&] { attention(x.query, x.key, shorter); });
  const auto on_meta = message_of<c10::ValueError>(
      [&] { attention(x.query.to(at::kMeta), x.key.to(at::kMeta), shorter.to(at::kMeta)); });
  EXPECT_EQ(on_cpu, on_meta);
  EXPECT_THAT(on_cpu, HasSubstr("got 33 and 32"));
}

}  // namespace
}  // namespace flash
