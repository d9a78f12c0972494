#include "models/fixture.h"

#include <flash_attention/models/registry.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <fstream>
#include <limits>

namespace flash::tests {
namespace {

/// Networks this small gain nothing from a second thread, and would wait for it on a busy machine.
class OneThread : public testing::Environment {
  void SetUp() override { at::set_num_threads(1); }
};
const testing::Environment* const kOneThread = testing::AddGlobalTestEnvironment(new OneThread);

}  // namespace

models::TensorMap Fixture::under(const std::string& prefix) const {
  constexpr std::string_view kComplex = "#ri";
  models::TensorMap found;
  for (const auto& [key, tensor] : tensors) {
    if (!key.starts_with(prefix)) continue;
    std::string name = key.substr(prefix.size());
    if (name.ends_with(kComplex)) {
      name.resize(name.size() - kComplex.size());
      found.emplace(name, at::view_as_complex(tensor));
    } else {
      found.emplace(name, tensor);
    }
  }
  return found;
}

models::TensorMap Fixture::parameters_for(const torch::nn::Module& module) const {
  models::TensorMap all = under("param/");
  const auto ties = description.value("tied_keys", nlohmann::json::object());
  for (const auto& [name, stored] : ties.items()) all[name] = all.at(stored.get<std::string>());
  const models::TensorMap own = models::state_dict(module);
  for (const std::string name : description.at("omitted_state_dict_keys")) {
    if (const auto found = own.find(name); found != own.end()) all.insert(*found);
  }
  return all;
}

models::WindowsBatch Fixture::windows(at::ScalarType dtype) const {
  models::WindowsBatch windows;
  for (const auto& [name, tensor] : under("input/")) member(windows, name) = tensor.to(dtype);
  return windows;
}

std::string fixture_path(const std::string& name) {
  return std::string(FLASH_FIXTURES) + "/" + name + ".safetensors";
}

Fixture load_fixture(const std::string& name) {
  std::ifstream description(std::string(FLASH_FIXTURES) + "/" + name + ".json");
  return {.description = nlohmann::json::parse(description),
          .tensors = models::read_safetensors(fixture_path(name)).tensors};
}

std::shared_ptr<models::ForecastModel> model_of(const Fixture& fixture,
                                                const models::ModelConfig& config,
                                                const nlohmann::json& overrides) {
  const nlohmann::json& description = fixture.description;
  nlohmann::json options = description.at("case").at("kw");
  if (description.contains("fourier_index"))
    options["fourier_index"] = description["fourier_index"];
  options.update(overrides);
  const auto model = models::make_model(description.at("case").at("model"), options.dump(),
                                        description.at("derived").at("out_mult"), config);
  models::load_state_dict(model->module(), fixture.parameters_for(model->module()));
  model->module().train(description.at("case").at("mode") == "train");
  return model;
}

at::Tensor& member(models::WindowsBatch& windows, const std::string& name) {
  if (name == "insample_y") return windows.insample_y;
  if (name == "insample_mask") return windows.insample_mask;
  if (name == "futr_exog") return windows.futr_exog;
  if (name == "hist_exog") return windows.hist_exog;
  TORCH_CHECK(name == "stat_exog", "unknown input in fixture: ", name);
  return windows.stat_exog;
}

double max_difference(const at::Tensor& a, const at::Tensor& b) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  if (a.sizes() != b.sizes() || a.is_complex() != b.is_complex()) return kInfinity;
  if (a.numel() == 0) return 0.0;
  const at::ScalarType wide = a.is_complex() ? at::kComplexDouble : at::kDouble;
  const double difference = (a.to(wide) - b.to(wide)).abs().max().item<double>();
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
