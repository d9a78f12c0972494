// torch's scaled_dot_product_attention: the drop-in from C++, and ReplaceSdpa.

#include <flash_attention/ops.h>
#include <flash_attention/scaled_dot_product_attention.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "ops/testing.h"

namespace flash {
namespace {

using at::Tensor;
using testing::HasSubstr;
using tests::Inputs;
using tests::largest_difference;
using tests::message_of;
using tests::tolerance;

class Sdpa : public testing::TestWithParam<at::ScalarType> {};

TEST_P(Sdpa, EqualsTorchs) {
  const Inputs x(GetParam());
  const auto bound = tolerance(GetParam());
  const Tensor mask = at::rand({19, 33}) < 0.7;
  EXPECT_LT(largest_difference(flash::scaled_dot_product_attention(x.query, x.key, x.value),
                               at::scaled_dot_product_attention(x.query, x.key, x.value)),
            bound);
  EXPECT_LT(largest_difference(flash::scaled_dot_product_attention(x.query, x.key, x.value, mask),
                               at::scaled_dot_product_attention(x.query, x.key, x.value, mask)),
            bound);
  // Top-left alignment, with more keys than queries.
  EXPECT_LT(largest_difference(
                flash::scaled_dot_product_attention(x.query, x.key, x.value, {}, 0.0, true, 0.3),
                at::scaled_dot_product_attention(x.query, x.key, x.value, {}, 0.0, true, 0.3)),
            bound);
}

TEST_P(Sdpa, AcceptsAnyNumberOfDimensionsAndGroups) {
  const Inputs x(GetParam());
  const Tensor key = x.key.narrow(1, 0, 2), value = x.value.narrow(1, 0, 2);
  const Tensor grouped = flash::scaled_dot_product_attention(x.query, key, value, {}, 0.0, false,
                                                             {}, /*enable_gqa=*/true);
  EXPECT_LT(largest_difference(grouped, attention(x.query, key, value)), tolerance(GetParam()));

  const Tensor flat =
      flash::scaled_dot_product_attention(x.query[0][0], x.key[0][0], x.value[0][0]);
  const Tensor whole = attention(x.query, x.key, x.value);
  EXPECT_LT(largest_difference(flat, whole[0][0]), tolerance(GetParam()));
  const Tensor deep = flash::scaled_dot_product_attention(x.query.unsqueeze(1), x.key.unsqueeze(1),
                                                          x.value.unsqueeze(1));
  EXPECT_LT(largest_difference(deep.squeeze(1), whole), tolerance(GetParam()));
}

TEST_P(Sdpa, HasTorchsGradients) {
  Inputs x(GetParam());
  x.requires_grad();
  const Tensor mask = at::randn({1, 4, 1, 33}, x.query.options()).requires_grad_();
  const std::vector<Tensor> inputs = {x.query, x.key, x.value, mask};
  const auto gradients = [&](const Tensor& out) {
    return torch::autograd::grad({out.sin().sum()}, inputs);
  };
  const auto ours = gradients(flash::scaled_dot_product_attention(x.query, x.key, x.value, mask));
  const auto theirs = gradients(at::scaled_dot_product_attention(x.query, x.key, x.value, mask));
  for (size_t i = 0; i < inputs.size(); ++i) {
    EXPECT_EQ(ours[i].sizes(), inputs[i].sizes());
    // Each element of the mask's gradient is a sum over 2 x 19 rows.
    EXPECT_LT(largest_difference(ours[i], theirs[i]), 10 * tolerance(GetParam())) << i;
  }
}

INSTANTIATE_TEST_SUITE_P(Types, Sdpa, testing::Values(at::kFloat, at::kDouble),
                         [](const auto& info) { return toString(info.param); });

TEST(SdpaErrors, SayWhatWasExpected) {
  const Inputs x;
  const Tensor mask = at::ones({18, 33}, at::kBool), shorter = x.value.narrow(2, 0, 32);
  EXPECT_THAT(message_of<c10::ValueError>(
                  [&] { flash::scaled_dot_product_attention(x.query, x.key, x.value, mask); }),
              HasSubstr("attn_mask to broadcast to [2, 4, 19, 33], got [18, 33]"));
  EXPECT_THAT(message_of<c10::ValueError>([&] {
                flash::scaled_dot_product_attention(x.query, x.key, x.value, mask, 0.0, true);
              }),
              HasSubstr("attn_mask or is_causal, got both"));
  EXPECT_THAT(message_of<c10::ValueError>(
                  [&] { flash::scaled_dot_product_attention(x.query, x.key, shorter); }),
              HasSubstr("one length, got 33 and 32"));
}

/// Whether `at::scaled_dot_product_attention` is ours. Torch's differs in the last bits.
bool is_ours() {
  const Inputs x(at::kFloat, {.queries = 64, .keys = 200, .head_dim = 48});
  const Tensor out = at::scaled_dot_product_attention(x.query, x.key, x.value);
  return out.equal(attention(x.query, x.key, x.value));
}

TEST(ReplaceSdpa, LastsAsLongAsTheObjectExists) {
  EXPECT_FALSE(is_ours());
  {
    const ReplaceSdpa outer;
    EXPECT_TRUE(is_ours());
    { const ReplaceSdpa inner; }
    EXPECT_TRUE(is_ours());
  }
  EXPECT_FALSE(is_ours());
}

TEST(ReplaceSdpa, HoldsInEveryThreadAndInInferenceMode) {
  const ReplaceSdpa replacement;
  bool in_thread = false;
  std::thread([&] { in_thread = is_ours(); }).join();
  EXPECT_TRUE(in_thread);
  const c10::InferenceMode inference;
  EXPECT_TRUE(is_ours());
}

TEST(ReplaceSdpa, EndsWithAnException) {
  const auto fails = [] {
    const ReplaceSdpa replacement;
    TORCH_CHECK(false, "on purpose");
  };
  EXPECT_THROW(fails(), c10::Error);
  EXPECT_FALSE(is_ours());
}

TEST(ReplaceSdpa, LeavesUnsupportedCallsToTorch) {
  const Inputs x(at::kFloat);
  const auto call = [&] {
    const Tensor nested =
        at::_nested_tensor_from_tensor_list({x.key[0], x.key[1].narrow(1, 0, 20)});
    return at::scaled_dot_product_attention(nested, nested, nested).to_padded_tensor(0);
  };
  const Tensor expected = call();
  const ReplaceSdpa replacement;
  EXPECT_TRUE(call().equal(expected));
}

TEST(ReplaceSdpa, RecordsGradients) {
  const ReplaceSdpa replacement;
  Inputs x;
  x.requires_grad();
  at::scaled_dot_product_attention(x.query, x.key, x.value).sum().backward();
  const Tensor through_torch = x.query.grad().clone();
  x.query.mutable_grad().reset();
  attention(x.query, x.key, x.value).sum().backward();
  EXPECT_TRUE(through_torch.equal(x.query.grad()));
}

}  // namespace
}  // namespace flash
