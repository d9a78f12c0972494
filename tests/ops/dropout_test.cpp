#include <ATen/Parallel.h>
#include <flash_attention/dropout.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <string>

#include "ops/allocations.h"
#include "ops/testing.h"

namespace flash {
namespace {

using at::Tensor;
using testing::AllOf;
using testing::HasSubstr;
using tests::largest_difference;
using tests::message_of;

constexpr int64_t kSeed = 5;
const int64_t kOddSizes[] = {0, 1, 2, 7, 31, 63, 64, 65, 70};

/// The factors, 0 or 1 / (1 - p), of a dropout of this shape under kSeed.
Tensor factors(at::IntArrayRef shape, at::ScalarType dtype, double p) {
  torch::manual_seed(kSeed);
  return flash::dropout(at::ones(shape, dtype), p, true);
}

Tensor normal(at::IntArrayRef shape, at::ScalarType dtype, uint64_t seed = 1) {
  torch::manual_seed(seed);
  return at::randn(shape, dtype);
}

class DropoutOf : public testing::TestWithParam<at::ScalarType> {};
INSTANTIATE_TEST_SUITE_P(Dtype, DropoutOf, testing::Values(at::kFloat, at::kDouble),
                         [](const auto& info) { return std::string(toString(info.param)); });

TEST_P(DropoutOf, DropsOrScalesEachElement) {
  for (const int64_t size : kOddSizes) {
    const Tensor x = normal({3, size}, GetParam());
    torch::manual_seed(kSeed);
    const Tensor y = flash::dropout(x, 0.4, true);
    EXPECT_EQ(y.sizes(), x.sizes());
    EXPECT_EQ(y.scalar_type(), GetParam());
    const Tensor kept = y.ne(0);
    EXPECT_TRUE(at::allclose(y, x * kept / 0.6, /*rtol=*/1e-6));
  }
}

TEST_P(DropoutOf, KeepsTheExpectedShare) {
  for (const double p : {0.05, 0.5, 0.9}) {
    // 0.01 is at least twenty standard deviations of the mean of a million elements.
    const double kept =
        factors({1000, 1000}, GetParam(), p).ne(0).to(at::kDouble).mean().item<double>();
    EXPECT_NEAR(kept, 1 - p, 0.01);
  }
}

TEST_P(DropoutOf, NeighboursAreIndependent) {
  const Tensor centred = factors({1'000'000}, GetParam(), 0.5).to(at::kDouble) - 1.0;
  for (const int64_t apart : {1, 2, 3, 4, 8, 16, 32, 64}) {
    const int64_t n = centred.numel() - apart;
    const Tensor product = centred.narrow(0, 0, n) * centred.narrow(0, apart, n);
    // Five standard deviations of the mean of n signs.
    EXPECT_LE(std::abs(product.mean().item<double>()), 5 / std::sqrt(static_cast<double>(n)));
  }
}

TEST_P(DropoutOf, GradientsUseTheMaskOfTheForward) {
  for (const int64_t size : kOddSizes) {
    const Tensor factor = factors({5, size}, GetParam(), 0.3);
    const Tensor x = normal({5, size}, GetParam()).requires_grad_();
    const Tensor residual = normal({5, size}, GetParam(), 2).requires_grad_();
    const Tensor grad = normal({5, size}, GetParam(), 3);
    torch::manual_seed(kSeed);
    const Tensor y = flash::dropout(x, 0.3, true);
    EXPECT_LE(largest_difference(at::cat({y.flatten(), at::zeros({1})}),
                                 at::cat({(x * factor).flatten(), at::zeros({1})})),
              tests::tolerance(GetParam()));
    EXPECT_TRUE(at::allclose(torch::autograd::grad({y}, {x}, {grad})[0], grad * factor));
    torch::manual_seed(kSeed);
    const Tensor z = dropout_add(x, residual, 0.3, true);
    EXPECT_TRUE(at::allclose(z, residual + x * factor, 1e-5, 1e-6));
    const auto grads = torch::autograd::grad({z}, {x, residual}, {grad});
    EXPECT_TRUE(at::allclose(grads[0], grad * factor));
    EXPECT_TRUE(at::equal(grads[1], grad));
  }
}

TEST_P(DropoutOf, BlocksEqualOneCall) {
  const Tensor x = normal({5, 70}, GetParam());
  torch::manual_seed(kSeed);
  const Tensor dropped = flash::dropout(x, 0.3, true);
  torch::manual_seed(kSeed);
  const BlockedDropout call(0.3);
  const Tensor out = at::empty_like(x);
  const auto part = [](const Tensor& t, int64_t first, int64_t size) {
    return t.flatten().narrow(0, first, size);
  };
  for (const auto& [first, size] : {std::pair<int64_t, int64_t>{0, 192}, {192, 158}}) {
    call.apply(part(x, first, size), first, part(out, first, size));
  }
  EXPECT_TRUE(at::equal(out, dropped));
  BlockedDropout(0.3, call.seed()).apply(out, 0, out);
  EXPECT_TRUE(at::allclose(out * 0.7, dropped));
}

TEST_P(DropoutOf, ActivationsAndTheirGradientsEqualThoseOfATen) {
  for (const Activation activation : {Activation::kRelu, Activation::kGelu}) {
    for (const int64_t size : kOddSizes) {
      const Tensor factor = factors({9, size}, GetParam(), 0.2).to(at::kDouble);
      const Tensor x = normal({9, size}, GetParam()).requires_grad_();
      const Tensor grad = normal({9, size}, GetParam(), 3);
      torch::manual_seed(kSeed);
      const Tensor y = activation_dropout(x, activation, 0.2, true);
      const Tensor d = torch::autograd::grad({y}, {x}, {grad})[0];
      const Tensor x64 = x.detach().to(at::kDouble).requires_grad_();
      const Tensor expected =
          (activation == Activation::kRelu ? at::relu(x64) : at::gelu(x64)) * factor;
      const Tensor expected_d = torch::autograd::grad({expected}, {x64}, {grad.to(at::kDouble)})[0];
      const double tolerance = tests::tolerance(GetParam());
      EXPECT_TRUE(at::allclose(y.to(at::kDouble), expected, tolerance, tolerance));
      EXPECT_TRUE(at::allclose(d.to(at::kDouble), expected_d, tolerance, tolerance));
    }
  }
}

TEST_P(DropoutOf, MaskDependsOnLogicalIndices) {
  const Tensor x = normal({6, 10, 7}, GetParam());
  const Tensor grad = normal({6, 10, 7}, GetParam(), 2);
  const auto run = [&](const Tensor& input, const Tensor& d) {
    const Tensor leaf = input.detach().requires_grad_();
    torch::manual_seed(kSeed);
    const Tensor y = activation_dropout(leaf, Activation::kGelu, 0.5, true);
    torch::manual_seed(kSeed);
    const Tensor z = dropout_add(leaf, d, 0.5, true);
    return std::tuple(y, z, torch::autograd::grad({y}, {leaf}, {d})[0]);
  };
  const auto strided = [](const Tensor& t) {
    return t.permute({2, 0, 1}).contiguous().permute({1, 2, 0});
  };
  const auto [y, z, d] = run(x, grad);
  const auto [y2, z2, d2] = run(strided(x), strided(grad));
  EXPECT_TRUE(at::equal(y, y2));
  EXPECT_TRUE(at::equal(z, z2));
  EXPECT_TRUE(at::equal(d, d2));
}

TEST(Dropout, HasASecondDerivative) {
  const Tensor x = normal({4, 33}, at::kDouble).requires_grad_();
  const Tensor factor = factors({4, 33}, at::kDouble, 0.5);
  torch::manual_seed(kSeed);
  const Tensor y = flash::dropout(x, 0.5, true);
  const Tensor d =
      torch::autograd::grad({(y * y * y).sum()}, {x}, {}, {}, /*create_graph=*/true)[0];
  const Tensor dd = torch::autograd::grad({d.sum()}, {x})[0];
  EXPECT_LE(largest_difference(dd, 6 * x * factor.pow(3)), tests::kOperatorFloat64);
}

TEST(DropoutAdd, HasSecondDerivatives) {
  const Tensor x = normal({4, 33}, at::kDouble).requires_grad_();
  const Tensor residual = normal({4, 33}, at::kDouble, 2).requires_grad_();
  const Tensor factor = factors({4, 33}, at::kDouble, 0.5);
  torch::manual_seed(kSeed);
  const Tensor z = dropout_add(x, residual, 0.5, true);
  const Tensor d =
      torch::autograd::grad({(z * z * z).sum()}, {x}, {}, {}, /*create_graph=*/true)[0];
  const auto dd = torch::autograd::grad({d.sum()}, {x, residual});
  EXPECT_LE(largest_difference(dd[0], 6 * z * factor.pow(2)), tests::kOperatorFloat64);
  EXPECT_LE(largest_difference(dd[1], 6 * z * factor), tests::kOperatorFloat64);
}

TEST(Dropout, SecondDerivativeOfAnActivationIsNotImplemented) {
  const Tensor x = normal({4}, at::kDouble).requires_grad_();
  const Tensor y = activation_dropout(x, Activation::kGelu, 0.5, true);
  const Tensor d = torch::autograd::grad({y.sum()}, {x}, {}, {}, /*create_graph=*/true)[0];
  EXPECT_THAT(message_of<c10::NotImplementedError>([&] { d.sum().backward(); }),
              AllOf(HasSubstr("flash::activation_dropout"), HasSubstr("flash::dropout")));
}

TEST(Dropout, CopiesAndDrawsNothingWhenNothingIsDropped) {
  const Tensor x = normal({3, 5}, at::kFloat), residual = normal({3, 5}, at::kFloat, 2);
  torch::manual_seed(kSeed);
  const Tensor next = at::rand({1});
  torch::manual_seed(kSeed);
  for (const auto& [p, training] : {std::pair(0.0, true), std::pair(0.5, false)}) {
    EXPECT_TRUE(flash::dropout(x, p, training).is_same(x));
    EXPECT_TRUE(at::equal(dropout_add(x, residual, p, training), x + residual));
    EXPECT_TRUE(at::equal(activation_dropout(x, Activation::kRelu, p, training), at::relu(x)));
    EXPECT_TRUE(at::equal(activation_dropout(x, Activation::kGelu, p, training), at::gelu(x)));
  }
  EXPECT_TRUE(at::equal(at::rand({1}), next));
}

TEST(Dropout, ProbabilityOneGivesZeros) {
  const Tensor x = normal({3, 70}, at::kFloat).requires_grad_();
  const Tensor y = flash::dropout(x, 1.0, true);
  EXPECT_TRUE(at::equal(y, at::zeros_like(y)));
  EXPECT_TRUE(at::equal(torch::autograd::grad({y.sum()}, {x})[0], at::zeros_like(y)));
}

TEST(Dropout, FollowsManualSeed) {
  const Tensor x = at::ones({1000});
  const auto draw = [&] { return flash::dropout(x, 0.5, true); };
  torch::manual_seed(1);
  const Tensor first = draw(), second = draw();
  torch::manual_seed(1);
  EXPECT_TRUE(at::equal(draw(), first));
  EXPECT_TRUE(at::equal(draw(), second));
  EXPECT_FALSE(at::equal(first, second));
  torch::manual_seed(2);
  EXPECT_FALSE(at::equal(draw(), first));
}

TEST(Dropout, BitsDoNotDependOnTheNumberOfThreads) {
  const Tensor x = normal({257, 1001}, at::kFloat);
  const auto draw = [&] {
    torch::manual_seed(kSeed);
    return activation_dropout(x, Activation::kGelu, 0.5, true);
  };
  const int threads = at::get_num_threads();
  at::set_num_threads(1);
  const Tensor alone = draw();
  at::set_num_threads(4);
  const Tensor together = draw();
  at::set_num_threads(threads);
  EXPECT_TRUE(at::equal(alone, together));
}

TEST(Dropout, AllocatesNoMask) {
  const Tensor x = normal({100, 1000}, at::kFloat).requires_grad_();
  EXPECT_EQ(tests::peak_beyond_result([&] { return flash::dropout(x, 0.5, true); }), 0);
  EXPECT_EQ(tests::peak_beyond_result(
                [&] { return activation_dropout(x, Activation::kGelu, 0.5, true); }),
            0);
}

TEST(Dropout, ErrorsSayWhatWasExpected) {
  const Tensor x = at::ones({2, 3});
  for (const double p : {-0.1, 1.5, std::nan("")}) {
    EXPECT_THAT(message_of<c10::ValueError>([&] { flash::dropout(x, p, true); }),
                AllOf(HasSubstr("flash::dropout: expected p"), HasSubstr("[0, 1]")));
    EXPECT_THAT(message_of<c10::ValueError>([&] { dropout_add(x, x, p, false); }),
                HasSubstr("flash::dropout_add: expected p"));
    EXPECT_THAT(
        message_of<c10::ValueError>([&] { activation_dropout(x, Activation::kRelu, p, false); }),
        HasSubstr("flash::activation_dropout: expected p"));
  }
  EXPECT_THAT(message_of<c10::ValueError>([&] { dropout_add(x, at::ones({3}), 0.5, true); }),
              AllOf(HasSubstr("the same shape"), HasSubstr("[2, 3]"), HasSubstr("[3]")));
  EXPECT_THAT(message_of<c10::TypeError>([&] { flash::dropout(x.to(at::kHalf), 0.5, true); }),
              AllOf(HasSubstr("float32 or float64"), HasSubstr("Half")));
  EXPECT_THAT(message_of<c10::TypeError>([&] { dropout_add(x, x.to(at::kDouble), 0.5, true); }),
              AllOf(HasSubstr("the same dtype"), HasSubstr("Double")));
  EXPECT_THAT(message_of<c10::ValueError>([&] { flash::dropout(x.to(at::kMeta), 0.5, true); }),
              HasSubstr("on the CPU, got it on meta"));
}

TEST(BlockedActivationDropout, BeginsAtAMultipleOf64) {
  const Tensor x = normal({70}, at::kFloat), out = at::empty_like(x), grad = at::ones_like(x);
  const BlockedActivationDropout call(Activation::kRelu, 0.5);
  for (const int64_t first : {-64, -1, 1, 32, 65}) {
    const auto matcher =
        HasSubstr("flash::BlockedActivationDropout: expected first to be a multiple of 64, got " +
                  std::to_string(first));
    EXPECT_THAT(message_of<c10::ValueError>([&] { call.forward(x, first, out); }), matcher);
    EXPECT_THAT(message_of<c10::ValueError>([&] { call.backward(x, first, grad, out); }), matcher);
  }
  EXPECT_NO_THROW(call.forward(x, 128, out));
}

}  // namespace
}  // namespace flash
