#include "models/fixture.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <fstream>
#include <limits>

namespace flash::tests {
namespace {

/// Networks this small gain nothing from a second thread, and wait for it where the machine is
/// busy.
class OneThread : public testing::Environment {
  void SetUp() override { at::set_num_threads(1); }
};
const testing::Environment* const kOneThread = testing::AddGlobalTestEnvironment(new OneThread);

}  // namespace

models::TensorMap Fixture::under(const std::string& prefix) const {
  models::TensorMap found;
  for (const auto& [key, tensor] : tensors) {
    if (key.starts_with(prefix)) found.emplace(key.substr(prefix.size()), tensor);
  }
  return found;
}

Fixture load_fixture(const std::string& name) {
  const std::string stem = std::string(FLASH_FIXTURES) + "/" + name;
  std::ifstream description(stem + ".json");
  return {.description = nlohmann::json::parse(description),
          .tensors = models::read_safetensors(stem + ".safetensors").tensors};
}

models::PatchTSTOptions patchtst_options(const Fixture& fixture) {
  const nlohmann::json& given = fixture.description.at("case").at("kw");
  models::PatchTSTOptions options(given.at("h"), given.at("input_size"));
  options.outputsize_multiplier(fixture.description.at("derived").at("out_mult"));
  for (const auto& [name, value] : given.items()) {
    if (name == "hidden_size")
      options.hidden_size(value);
    else if (name == "n_heads")
      options.n_heads(value);
    else if (name == "linear_hidden_size")
      options.linear_hidden_size(value);
    else if (name == "patch_len")
      options.patch_len(value);
    else if (name == "stride")
      options.stride(value);
    else if (name == "encoder_layers")
      options.encoder_layers(value);
    else if (name == "dropout")
      options.dropout(value);
    else if (name == "activation")
      options.activation(value.get<std::string>());
    else if (name == "res_attention")
      options.res_attention(value);
    else if (name == "batch_normalization")
      options.batch_normalization(value);
    else if (name == "revin")
      options.revin(value);
    else if (name == "revin_affine")
      options.revin_affine(value);
    else if (name == "revin_subtract_last")
      options.revin_subtract_last(value);
    else if (name == "learn_pos_embed")
      options.learn_pos_embed(value);
    else
      TORCH_CHECK(name == "h" || name == "input_size", "unknown option in fixture: ", name);
  }
  return options;
}

double max_difference(const at::Tensor& a, const at::Tensor& b) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  if (a.sizes() != b.sizes()) return kInfinity;
  if (a.numel() == 0) return 0.0;
  const double difference = (a.to(at::kDouble) - b.to(at::kDouble)).abs().max().item<double>();
  return std::isnan(difference) ? kInfinity : difference;
}

models::PatchTSTOptions tiny_options() {
  return models::PatchTSTOptions(/*h=*/4, /*input_size=*/24)
      .encoder_layers(2)
      .n_heads(2)
      .hidden_size(8)
      .linear_hidden_size(16)
      .patch_len(6)
      .stride(3)
      .dropout(0.0);
}

}  // namespace flash::tests
