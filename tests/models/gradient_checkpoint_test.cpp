// Blocks that are recomputed in the backward: the same results, less memory.

#include <ATen/autocast_mode.h>
#include <flash_attention/dropout.h>
#include <flash_attention/models/gradient_checkpoint.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "ops/allocations.h"

namespace flash::tests {
namespace {

using models::gradient_checkpoint;
using testing::HasSubstr;
using testing::ThrowsMessage;
using Tensors = std::vector<torch::Tensor>;

/// Two linear layers with batch norm and both kinds of dropout between them.
struct BlockNetImpl : torch::nn::Module {
  BlockNetImpl()
      : first(register_module("first", torch::nn::Linear(6, 64))),
        norm(register_module("norm", torch::nn::BatchNorm1d(64))),
        second(register_module("second", torch::nn::Linear(64, 6))) {}

  torch::Tensor forward(const torch::Tensor& x) {
    const torch::Tensor inner = torch::dropout(norm(first(x)).tanh(), 0.3, is_training());
    return flash::dropout(second(inner), 0.2, is_training()) + x;
  }

  torch::nn::Linear first;
  torch::nn::BatchNorm1d norm;
  torch::nn::Linear second;
};
TORCH_MODULE(BlockNet);

torch::Tensor run(const BlockNet& net, const torch::Tensor& x, bool recompute) {
  if (!recompute) return net.ptr()->forward(x);
  return gradient_checkpoint([net = net.ptr()](const Tensors& in) { return net->forward(in[0]); },
                             {x}, *net);
}

struct StepResult {
  torch::Tensor output, input_gradient, next_random;
  Tensors gradients, buffers;
};

StepResult step(bool recompute, bool use_grad) {
  torch::manual_seed(5);
  const BlockNet net;
  const torch::Tensor x = torch::randn({9, 6}).requires_grad_();
  torch::Tensor output = x;
  for (int i = 0; i < 3; ++i) output = run(net, output, recompute);  // one network, three times
  StepResult result;
  Tensors wanted = net->parameters();
  wanted.push_back(x);
  const torch::Tensor loss = output.square().sum();
  if (use_grad) {
    result.gradients = torch::autograd::grad({loss}, wanted);
  } else {
    loss.backward();
    for (const torch::Tensor& tensor : wanted) result.gradients.push_back(tensor.grad());
  }
  result.output = output.detach();
  for (const torch::Tensor& buffer : net->buffers()) result.buffers.push_back(buffer.clone());
  result.next_random = torch::rand({3});
  return result;
}

void expect_same(const StepResult& a, const StepResult& b) {
  EXPECT_TRUE(torch::equal(a.output, b.output));
  EXPECT_TRUE(torch::equal(a.next_random, b.next_random));
  for (size_t i = 0; i < a.gradients.size(); ++i) {
    // The order in which a tensor's gradients are added up may differ.
    EXPECT_TRUE(torch::allclose(a.gradients[i], b.gradients[i], 1e-5, 1e-5)) << i;
  }
  for (size_t i = 0; i < a.buffers.size(); ++i) {
    EXPECT_TRUE(torch::equal(a.buffers[i], b.buffers[i])) << i;
  }
}

TEST(GradientCheckpoint, ChangesNeitherResultsNorStatisticsNorTheGenerator) {
  const StepResult plain = step(false, false);
  expect_same(step(true, false), plain);
  expect_same(step(true, true), plain);
}

TEST(GradientCheckpoint, KeepsOnlyTheInputs) {
  const auto peak = [](bool recompute) {
    torch::manual_seed(1);
    std::vector<BlockNet> layers(8);
    const torch::Tensor x = torch::randn({500, 6});
    return peak_beyond_result([&] {
      torch::Tensor output = x;
      for (const BlockNet& layer : layers) output = run(layer, output, recompute);
      const torch::Tensor loss = output.sum();
      loss.backward();
      return loss.detach();
    });
  };
  EXPECT_LT(peak(true), peak(false) / 3);
}

TEST(GradientCheckpoint, AcceptsAndReturnsSeveralAndUndefinedTensors) {
  const torch::Tensor a = torch::randn({4}).requires_grad_();
  const torch::Tensor b = torch::randn({4});
  const torch::Tensor weight = torch::randn({4}).requires_grad_();
  const auto block = [weight](const Tensors& in) -> Tensors {
    EXPECT_FALSE(in[1].defined());
    return {in[0] * weight, torch::Tensor(), in[2] + 1, in[0].argmax(), in[0]};
  };
  const Tensors outputs = gradient_checkpoint(block, {a, torch::Tensor(), b}, Tensors{weight});
  ASSERT_EQ(outputs.size(), 5u);
  EXPECT_FALSE(outputs[1].defined());
  EXPECT_TRUE(torch::equal(outputs[2], b + 1));
  EXPECT_FALSE(outputs[3].requires_grad());
  (outputs[0].sum() + 2 * outputs[4].sum()).backward();
  EXPECT_TRUE(torch::equal(a.grad(), weight + 2));
  EXPECT_TRUE(torch::equal(weight.grad(), a));
}

TEST(GradientCheckpoint, CountsASharedParameterOnce) {
  const torch::Tensor x = torch::ones({2});
  const torch::Tensor weight = torch::ones({2}).requires_grad_();
  gradient_checkpoint([weight](const Tensors& in) { return in[0] * weight; }, {x},
                      Tensors{weight, weight})
      .sum()
      .backward();
  EXPECT_TRUE(torch::equal(weight.grad(), x));
}

TEST(GradientCheckpoint, RecomputesUnderTheSameAutocast) {
  const torch::Tensor x = torch::randn({4, 4}).requires_grad_();
  std::vector<torch::ScalarType> seen;
  const auto block = [&seen](const Tensors& in) {
    const torch::Tensor product = in[0].matmul(in[0]);
    seen.push_back(product.scalar_type());
    return product;
  };
  const torch::ScalarType usual = at::autocast::get_autocast_dtype(at::kCPU);
  ASSERT_NE(usual, torch::kHalf);
  at::autocast::set_autocast_dtype(at::kCPU, torch::kHalf);
  at::autocast::set_autocast_enabled(at::kCPU, true);
  const torch::Tensor output = gradient_checkpoint(block, {x}, Tensors{});
  at::autocast::set_autocast_enabled(at::kCPU, false);
  at::autocast::set_autocast_dtype(at::kCPU, usual);
  at::autocast::clear_cache();
  output.sum().backward();
  EXPECT_EQ(seen, std::vector<torch::ScalarType>(2, torch::kHalf));
  EXPECT_FALSE(at::autocast::is_autocast_enabled(at::kCPU));
  EXPECT_EQ(at::autocast::get_autocast_dtype(at::kCPU), usual);
}

TEST(GradientCheckpoint, IsAPlainCallIfNoGradientIsNeeded) {
  const auto twice = [](const Tensors& in) { return 2 * in[0]; };
  EXPECT_FALSE(gradient_checkpoint(twice, {torch::ones({2})}, Tensors{}).requires_grad());
  const torch::NoGradGuard no_grad;
  const torch::Tensor leaf = torch::ones({2}).requires_grad_();
  EXPECT_FALSE(gradient_checkpoint(twice, {leaf}, Tensors{}).requires_grad());
}

TEST(GradientCheckpoint, RejectsASecondDerivative) {
  const torch::Tensor x = torch::randn({3}).requires_grad_();
  const torch::Tensor cube =
      gradient_checkpoint([](const Tensors& in) { return in[0] * in[0] * in[0]; }, {x}, Tensors{});
  const torch::Tensor first =
      torch::autograd::grad({cube.sum()}, {x}, {}, /*retain_graph=*/true, /*create_graph=*/true)[0];
  EXPECT_TRUE(torch::allclose(first, 3 * x * x));
  EXPECT_THAT([&] { first.sum().backward(); },
              ThrowsMessage<c10::NotImplementedError>(HasSubstr("call the block without")));
}

TEST(GradientCheckpoint, DetectsAParameterChangedBeforeTheBackward) {
  const torch::Tensor weight = torch::ones({2}).requires_grad_();
  const torch::Tensor output = gradient_checkpoint(
      [weight](const Tensors& in) { return in[0] * weight; }, {torch::ones({2})}, Tensors{weight});
  {
    const torch::NoGradGuard no_grad;
    torch::Tensor(weight).mul_(2);
  }
  EXPECT_THAT([&] { output.sum().backward(); },
              ThrowsMessage<c10::Error>(HasSubstr("modified by an inplace operation")));
}

TEST(GradientCheckpoint, RecomputesOncePerBackward) {
  int runs = 0;
  const torch::Tensor x = torch::ones({2}).requires_grad_();
  const torch::Tensor output = gradient_checkpoint(
      [&runs](const Tensors& in) {
        ++runs;
        return in[0].exp();
      },
      {x}, Tensors{});
  output.sum().backward({}, /*keep_graph=*/true);
  output.sum().backward();
  EXPECT_EQ(runs, 3);
  EXPECT_TRUE(torch::allclose(x.grad(), 2 * output));
}

}  // namespace
}  // namespace flash::tests
