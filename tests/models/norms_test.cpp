// Norms against torch's.

#include "layers/common/norms.h"

#include <ATen/Parallel.h>
#include <flash_attention/dropout.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <optional>
#include <utility>
#include <vector>

#include "models/fixture.h"
#include "tolerances.h"

namespace flash::tests {
namespace {

using torch::Tensor;

constexpr int64_t kRows = 150, kWidth = 7;  // rows of more than two pieces

/// Random weights and biases of order 1 in float64.
template <class Norm>
Norm with_random_parameters(Norm norm) {
  norm->to(at::kDouble);
  const torch::NoGradGuard no_grad;
  for (Tensor parameter : norm->parameters()) parameter.normal_();
  return norm;
}

torch::nn::BatchNorm1d batch_norm(const torch::nn::BatchNormOptions& options) {
  torch::manual_seed(2);
  return with_random_parameters(torch::nn::BatchNorm1d(options));
}

/// The result, and the gradients of input and parameters, of first or second order.
template <class Norm, class Call>
std::vector<Tensor> results(const Norm& norm, bool twice, const Call& call) {
  torch::manual_seed(1);
  const Tensor x = torch::randn({kRows, kWidth}, at::kDouble).mul(3).add(2).requires_grad_();
  const Tensor factors = torch::randn({kRows, kWidth}, at::kDouble);
  std::vector<Tensor> leaves = {x, norm->weight, norm->bias};
  const Tensor out = call(x);
  std::vector<Tensor> found =
      torch::autograd::grad({(out.sin() * factors).sum()}, leaves, {}, true, twice);
  if (twice) {
    const Tensor sum = found[0].square().sum() + found[1].square().sum();
    found = torch::autograd::grad({sum}, {x, norm->weight});
  }
  found.push_back(out.detach());
  return found;
}

void expect_same(const std::vector<Tensor>& found, const std::vector<Tensor>& expected) {
  ASSERT_EQ(found.size(), expected.size());
  for (size_t i = 0; i < found.size(); ++i) {
    EXPECT_LT(max_difference(found[i], expected[i]), kModelFloat64) << i;
  }
}

TEST(Norms, LayerNormEqualsTorchWithGradients) {
  torch::manual_seed(2);
  torch::nn::LayerNorm norm =
      with_random_parameters(torch::nn::LayerNorm(torch::nn::LayerNormOptions({kWidth}).eps(1e-3)));
  for (const bool twice : {false, true}) {
    expect_same(
        results(norm, twice, [&](const Tensor& x) { return models::layer_normalized(x, *norm); }),
        results(norm, twice, [&](const Tensor& x) { return norm(x); }));
  }
}

/// The results of layer_normalized_sum, or of its parts one after another.
std::vector<Tensor> of_sum(torch::nn::LayerNorm& norm, bool fused, double dropout, bool training) {
  const Tensor residual = torch::randn({kRows, kWidth}, at::kDouble).requires_grad_();
  return results(norm, false, [&](const Tensor& x) {
    torch::manual_seed(4);
    return fused ? models::layer_normalized_sum(x, residual, dropout, training, *norm)
                 : norm(dropout_add(x, residual, dropout, training));
  });
}

TEST(Norms, LayerNormOfASumEqualsItsParts) {
  torch::nn::LayerNorm norm =
      with_random_parameters(torch::nn::LayerNorm(torch::nn::LayerNormOptions({kWidth}).eps(1e-3)));
  for (const auto& [dropout, training] :
       {std::pair(0.3, true), std::pair(0.3, false), std::pair(0.0, true)}) {
    std::vector<Tensor> both[2];
    for (const bool fused : {false, true}) {
      torch::manual_seed(5);
      both[fused] = of_sum(norm, fused, dropout, training);
    }
    expect_same(both[1], both[0]);
  }
}

TEST(Norms, LayerNormOfASumHasTheGradientOfItsResidual) {
  torch::manual_seed(5);
  torch::nn::LayerNorm norm =
      with_random_parameters(torch::nn::LayerNorm(torch::nn::LayerNormOptions({kWidth})));
  const Tensor x = torch::randn({kRows, kWidth}, at::kDouble).requires_grad_();
  const Tensor residual = torch::randn({kRows, kWidth}, at::kDouble).requires_grad_();
  std::vector<Tensor> both[2];
  for (const bool fused : {false, true}) {
    torch::manual_seed(4);
    const Tensor out = fused ? models::layer_normalized_sum(x, residual, 0.3, true, *norm)
                             : norm(dropout_add(x, residual, 0.3, true));
    both[fused] = torch::autograd::grad({out.sin().sum()}, {x, residual});
  }
  expect_same(both[1], both[0]);
  const Tensor out = models::layer_normalized_sum(x, residual, 0.3, true, *norm);
  EXPECT_THROW(torch::autograd::grad({out.sum()}, {x}, {}, true, /*create_graph=*/true),
               c10::NotImplementedError);
}

TEST(Norms, BatchNormEqualsTorchWithGradientsAndStatistics) {
  for (const std::optional<double> momentum : {std::optional(0.1), std::optional<double>()}) {
    for (const bool twice : {false, true}) {
      const auto options = torch::nn::BatchNormOptions(kWidth).momentum(momentum).eps(1e-3);
      torch::nn::BatchNorm1d ours = batch_norm(options), theirs = batch_norm(options);
      for (int step = 0; step < 2; ++step) {
        expect_same(results(ours, twice,
                            [&](const Tensor& x) { return models::batch_normalized(x, *ours); }),
                    results(theirs, twice, [&](const Tensor& x) { return theirs(x); }));
      }
      expect_same({ours->running_mean, ours->running_var},
                  {theirs->running_mean, theirs->running_var});
      EXPECT_EQ(ours->num_batches_tracked.item<int64_t>(), 2);
    }
  }
}

TEST(Norms, BatchNormOfASumEqualsItsPartsWithGradientsAndStatistics) {
  const Tensor x = torch::randn({kRows, kWidth}, at::kDouble).requires_grad_();
  const Tensor residual = torch::randn({kRows, kWidth}, at::kDouble).requires_grad_();
  for (const double dropout : {0.3, 0.0}) {
    std::vector<Tensor> both[2];
    for (const bool fused : {false, true}) {
      torch::nn::BatchNorm1d norm = batch_norm(torch::nn::BatchNormOptions(kWidth));
      torch::manual_seed(4);
      const Tensor out = fused ? models::batch_normalized_sum(x, residual, dropout, true, *norm)
                               : norm(dropout_add(x, residual, dropout, true));
      both[fused] =
          torch::autograd::grad({out.sin().sum()}, {x, residual, norm->weight, norm->bias});
      for (const Tensor& more : {out.detach(), norm->running_mean, norm->running_var}) {
        both[fused].push_back(more);
      }
    }
    expect_same(both[1], both[0]);
  }
}

TEST(Norms, BatchNormUsesItsRunningStatisticsInEvaluation) {
  torch::nn::BatchNorm1d norm = batch_norm(torch::nn::BatchNormOptions(kWidth));
  const Tensor x = torch::randn({kRows, kWidth}, at::kDouble);
  models::batch_normalized(x, *norm);
  norm->eval();
  const Tensor mean = norm->running_mean.clone();
  EXPECT_TRUE(torch::equal(models::batch_normalized(x, *norm), norm(x)));
  EXPECT_TRUE(torch::equal(norm->running_mean, mean));
}

TEST(Norms, BitsDoNotDependOnTheNumberOfThreads) {
  torch::manual_seed(2);
  torch::nn::LayerNorm layer_norm =
      with_random_parameters(torch::nn::LayerNorm(torch::nn::LayerNormOptions({kWidth})));
  const auto all = [&](int threads) {
    at::set_num_threads(threads);
    torch::nn::BatchNorm1d norm = batch_norm(torch::nn::BatchNormOptions(kWidth));
    std::vector<Tensor> found =
        results(norm, false, [&](const Tensor& x) { return models::batch_normalized(x, *norm); });
    for (const Tensor& more : results(layer_norm, false, [&](const Tensor& x) {
           return models::layer_normalized(x, *layer_norm);
         })) {
      found.push_back(more);
    }
    return found;
  };
  const int threads = at::get_num_threads();
  const std::vector<Tensor> expected = all(1), found = all(3);
  at::set_num_threads(threads);
  for (size_t i = 0; i < found.size(); ++i) EXPECT_TRUE(torch::equal(found[i], expected[i])) << i;
}

}  // namespace
}  // namespace flash::tests
