#include "models/parity.h"

#include <torch/torch.h>

#include <algorithm>
#include <set>

namespace flash::tests {
namespace {

using models::TensorMap;
using nlohmann::json;

constexpr int64_t kBlockSize = 5;  // divides no length of a fixture, so the last block is partial

/// Real and imaginary parts as separate elements, as the fixtures sum them.
at::Tensor as_real(const at::Tensor& tensor) {
  return tensor.is_complex() ? at::view_as_real(tensor.resolve_conj()) : tensor;
}

/// Parameters under their names in Python, which lists a shared one once.
std::map<std::string, at::Tensor> named_parameters(const torch::nn::Module& module) {
  std::map<std::string, at::Tensor> named;
  for (const auto& parameter : module.named_parameters())
    named.emplace(parameter.key(), parameter.value());
  return named;
}

void expect_near_sums(const at::Tensor& gradient, const json& expected, double tolerance,
                      const std::string& name) {
  // Rounding errors accumulate over sums.
  tolerance *= std::max(1.0, expected[1].get<double>());
  EXPECT_NEAR(gradient.sum().item<double>(), expected[0], tolerance) << name;
  EXPECT_NEAR(gradient.abs().sum().item<double>(), expected[1], tolerance) << name;
  EXPECT_NEAR(gradient.norm().item<double>(), expected[2], tolerance) << name;
}

}  // namespace

std::vector<ParityCase> parity_cases(const std::vector<std::string>& fixtures,
                                     const ParityOptions& options) {
  std::vector<ParityCase> cases;
  for (const std::string& fixture : fixtures) {
    for (const bool flash : {false, true}) {
      if (flash && !options.flash) continue;
      for (const bool recomputed : {false, true}) {
        cases.push_back({.fixture = fixture,
                         .config = {.use_flash_attention = flash,
                                    .flash_block_size = kBlockSize,
                                    .gradient_checkpointing = recomputed},
                         .float64 = options.float64});
      }
    }
  }
  return cases;
}

std::string parity_name(const testing::TestParamInfo<ParityCase>& info) {
  return info.param.fixture + (info.param.config.use_flash_attention ? "_flash" : "_standard") +
         (info.param.config.gradient_checkpointing ? "_recomputed" : "");
}

AgainstPython::AgainstPython()
    : fixture_(load_fixture(GetParam().fixture)), model_(model_of(fixture_, GetParam().config)) {}

void AgainstPython::seed_forward() const {
  torch::manual_seed(fixture_.description.at("case").at("fwd_seed").get<uint64_t>());
}

at::Tensor AgainstPython::run_backward() {
  model_->module().to(torch::kDouble);
  windows_ = fixture_.windows(torch::kDouble);
  for (const auto& [name, gradient] : fixture_.under("grad64/input/")) {
    member(windows_, name).requires_grad_();
  }
  seed_forward();
  const at::Tensor output = model_->forward(windows_);
  (output * fixture_.at("w/y_hat").to(torch::kDouble)).sum().backward();
  return output.detach();
}

TEST_P(AgainstPython, OutputMatchesInFloat64) {
  EXPECT_LT(max_difference(run_backward(), fixture_.at("out64/y_hat")), GetParam().float64);
}

TEST_P(AgainstPython, OutputMatchesInFloat32) {
  const double python = fixture_.description.at("f32_vs_f64_max_abs");
  seed_forward();
  const at::Tensor output = model_->forward(fixture_.windows(torch::kFloat));
  EXPECT_EQ(output.scalar_type(), torch::kFloat);
  EXPECT_LT(max_difference(output, fixture_.at("out64/y_hat")),
            std::max(kModelFloat32TimesPython * python, kModelFloat32));
}

TEST_P(AgainstPython, StoredGradientsMatch) {
  run_backward();
  for (const auto& [name, gradient] : fixture_.under("grad64/input/")) {
    EXPECT_LT(max_difference(member(windows_, name).grad(), gradient), GetParam().float64) << name;
  }
  const auto parameters = named_parameters(model_->module());
  const TensorMap expected = fixture_.under("grad64/param/");
  ASSERT_FALSE(expected.empty());
  for (const auto& [name, gradient] : expected) {
    ASSERT_TRUE(parameters.contains(name)) << name;
    EXPECT_LT(max_difference(parameters.at(name).grad(), gradient), GetParam().float64) << name;
  }
}

TEST_P(AgainstPython, EveryParametersGradientHasTheRecordedSums) {
  run_backward();
  const json& recorded = fixture_.description.at("grad_stats");
  const auto parameters = named_parameters(model_->module());
  for (const auto& [name, expected] : recorded.items()) {
    ASSERT_TRUE(parameters.contains(name)) << name;
    const at::Tensor gradient = parameters.at(name).grad();
    if (expected.is_null()) {  // an unused parameter may have a gradient of zero instead of none
      EXPECT_TRUE(!gradient.defined() || gradient.count_nonzero().item<int64_t>() == 0) << name;
    } else {
      ASSERT_TRUE(gradient.defined()) << name;
      expect_near_sums(as_real(gradient), expected, GetParam().float64, name);
    }
  }
  const json tied = fixture_.description.value("tied_keys", json::object());
  for (const auto& [name, parameter] : parameters) {
    EXPECT_TRUE(recorded.contains(name) || tied.contains(name)) << name;
  }
}

TEST_P(AgainstPython, BatchNormStatisticsMatchAfterTheForward) {
  run_backward();
  // A fixture in eval mode stores none, because the buffers must not change.
  const TensorMap after = fixture_.under("after/");
  const TensorMap before = fixture_.under("param/");
  const TensorMap& expected = after.empty() ? before : after;
  const std::string statistics[] = {"running_mean", "running_var", "num_batches_tracked"};
  for (const auto& buffer : model_->module().named_buffers()) {
    if (std::none_of(std::begin(statistics), std::end(statistics),
                     [&](const std::string& end) { return buffer.key().ends_with(end); })) {
      continue;
    }
    ASSERT_TRUE(expected.contains(buffer.key())) << buffer.key();
    EXPECT_LT(max_difference(*buffer, expected.at(buffer.key())), kModelFloat64) << buffer.key();
  }
}

TEST_P(AgainstPython, TheSameParametersAreTrained) {
  std::set<std::string> frozen;
  for (const std::string name : fixture_.description.at("requires_grad_false")) frozen.insert(name);
  for (const auto& [name, parameter] : named_parameters(model_->module())) {
    EXPECT_EQ(parameter.requires_grad(), !frozen.contains(name)) << name;
  }
}

}  // namespace flash::tests
