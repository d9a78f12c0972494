// PatchTST without autograd against its layers, which compute the forward that autograd records.

#include "layers/patchtst/patch_forecast.h"

#include <flash_attention/models/patchtst.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "models/fixture.h"
#include "tolerances.h"

namespace flash::tests {
namespace {

using models::PatchTST;
using models::PatchTSTOptions;

/// In evaluation mode, with norms that change something.
PatchTST trained(const PatchTSTOptions& options, at::ScalarType dtype) {
  torch::manual_seed(1);
  PatchTST model(options);
  const torch::NoGradGuard no_grad;
  for (auto& buffer : model->named_buffers()) {
    if (buffer.key().ends_with("running_mean")) buffer->uniform_(-0.5, 0.5);
    if (buffer.key().ends_with("running_var")) buffer->uniform_(0.5, 2.0);
  }
  for (auto& parameter : model->named_parameters()) {
    if (parameter.key().ends_with("sdp_attn.scale")) parameter->mul_(1.5);
    if (parameter.key().find("affine") != std::string::npos) parameter->uniform_(0.5, 1.5);
    if (parameter.key().find("norm_") != std::string::npos) parameter->uniform_(0.5, 1.5);
  }
  model->to(dtype);
  model->eval();
  return model;
}

torch::Tensor forecast(PatchTST& model, const torch::Tensor& windows) {
  const torch::NoGradGuard no_grad;
  return model->forward(windows);
}

TEST(PatchForecast, EqualsTheLayersForEveryOption) {
  const auto base = [] { return tiny_options().use_flash_attention(true); };
  const PatchTSTOptions all[] = {
      base(),
      base().res_attention(false),
      base().batch_normalization(true),
      base().activation("relu").encoder_layers(1),
      base().revin(false).learn_pos_embed(false),
      base().revin_affine(true).revin_subtract_last(false),
      base().hidden_size(50).n_heads(7).linear_hidden_size(33).encoder_layers(4),
      base().patch_len(40).outputsize_multiplier(3),
      base().input_size(130).stride(3),
      base().stride(100),
      PatchTSTOptions(/*h=*/96, /*input_size=*/96).use_flash_attention(true),
  };
  for (size_t i = 0; i < std::size(all); ++i) {
    for (const at::ScalarType dtype : {at::kFloat, at::kDouble}) {
      PatchTST model = trained(all[i], dtype);
      for (const int64_t batch : {1, 13}) {
        const torch::Tensor windows =
            torch::randn({batch, all[i].input_size(), 1}, dtype).cumsum(1) + 3;
        const torch::Tensor expected = model->forward(windows), found = forecast(model, windows);
        const double scale = expected.abs().max().item<double>();
        // Sums in another order, on values of order 1 before they are scaled as the windows are.
        EXPECT_LT(max_difference(found, expected),
                  scale * (dtype == at::kFloat ? kModelFloat32 : kModelFloat64))
            << "options " << i << ", batch " << batch << ", " << dtype;
        EXPECT_FALSE(found.requires_grad());
      }
    }
  }
}

TEST(PatchForecast, OfAWindowHasTheSameBitsInAnyBatchAndOnAnyNumberOfThreads) {
  if (!kernels::have_vectors()) GTEST_SKIP() << "the products are ATen's";
  PatchTST model = trained(tiny_options().use_flash_attention(true), at::kFloat);
  const torch::Tensor windows = torch::randn({70, 24, 1}), all = forecast(model, windows);
  for (const int64_t i : {0, 1, 47, 48, 69}) {
    EXPECT_TRUE(torch::equal(forecast(model, windows.narrow(0, i, 1)), all.narrow(0, i, 1))) << i;
  }
  const int threads = at::get_num_threads();
  for (const int count : {1, 2, 3}) {
    at::set_num_threads(count);
    EXPECT_TRUE(torch::equal(forecast(model, windows), all)) << count << " threads";
  }
  at::set_num_threads(threads);
}

TEST(PatchForecast, FollowsItsWeights) {
  PatchTST model = trained(tiny_options().use_flash_attention(true), at::kFloat);
  const torch::Tensor windows = torch::randn({2, 24, 1}), before = forecast(model, windows);
  // As an optimizer does that works on the values alone.
  for (torch::Tensor& parameter : model->parameters()) parameter.data().mul_(1.25);
  const torch::Tensor after = forecast(model, windows);
  EXPECT_GT(max_difference(after, before), 1e-3);
  EXPECT_LT(max_difference(after, model->forward(windows)),
            kModelFloat32 * after.abs().max().item<double>());
}

/// A network without layers, for windows of patches + 2 steps.
models::PatchNetwork without_layers(int64_t patches) {
  models::PatchNetwork network{};
  network.embedding = {torch::randn({8, 4}), torch::randn({8})};
  network.head = {torch::randn({3, 8 * patches}), torch::randn({3})};
  network.position = torch::randn({patches, 8});
  network.heads = 2, network.stride = 1;
  return network;
}

TEST(PatchForecast, IsNotForAutogradOrForManyPatches) {
  if (!kernels::have_vectors()) GTEST_SKIP() << "the products are ATen's";
  const torch::NoGradGuard no_grad;
  const torch::Tensor windows = torch::randn({2, 66});
  models::PatchNetwork network = without_layers(64);
  EXPECT_TRUE(models::fits_forecast(network, windows));
  {
    const at::AutoGradMode grad(true);
    EXPECT_FALSE(models::fits_forecast(network, windows));
  }
  EXPECT_FALSE(models::fits_forecast(network, windows.to(at::kBFloat16)));
  EXPECT_FALSE(models::fits_forecast(network, windows.to(at::kDouble)));
  EXPECT_FALSE(models::fits_forecast(without_layers(65), torch::randn({2, 67})));
  network.position = torch::randn({8, 64}).t();
  EXPECT_FALSE(models::fits_forecast(network, windows));
}

TEST(PatchForecast, IsNotForTensorsOfOtherSizes) {
  const torch::NoGradGuard no_grad;
  const torch::Tensor windows = torch::randn({2, 66});
  const auto change = [&](const auto& edit) {
    models::PatchNetwork network = without_layers(64);
    edit(network);
    return models::fits_forecast(network, windows);
  };
  EXPECT_FALSE(change([](auto& n) { n.embedding.bias = torch::randn({7}); }));
  EXPECT_FALSE(change([](auto& n) { n.head.weight = torch::randn({3, 511}); }));
  EXPECT_FALSE(change([](auto& n) { n.position = torch::randn({64}); }));
  EXPECT_FALSE(change([](auto& n) { n.affine_weight = torch::empty({0}); }));
  EXPECT_FALSE(change([](auto& n) { n.heads = 0; }));
  EXPECT_FALSE(models::fits_forecast(without_layers(64), torch::randn({2, 67})));
}

}  // namespace
}  // namespace flash::tests
