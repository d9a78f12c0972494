#pragma once
// Weights, inputs, outputs and gradients that the Python original computed; see
// tests/fixtures/make_fixtures.py for what the keys mean.

#include <flash_attention/models/forecast_model.h>
#include <flash_attention/models/patchtst.h>
#include <flash_attention/models/safetensors.h>

#include <nlohmann/json.hpp>
#include <string>

namespace flash::tests {

struct Fixture {
  nlohmann::json description;
  models::TensorMap tensors;

  /// The tensors under `prefix`, without it. Complex ones, stored as `<key>#ri` with a last
  /// dimension of 2, are complex here.
  models::TensorMap under(const std::string& prefix) const;
  const at::Tensor& at(const std::string& key) const { return tensors.at(key); }
  /// All of a model's tensors: the stored ones, ties under each of their names, and the model's own
  /// where the fixture leaves out what every model computes alike (tables of positions, masks).
  models::TensorMap parameters_for(const torch::nn::Module& module) const;
  /// `input/*` in a dtype.
  models::WindowsBatch windows(at::ScalarType dtype) const;
};

Fixture load_fixture(const std::string& name);

/// The path of a safetensors file among the fixtures.
std::string fixture_path(const std::string& name);

/// The model that the fixture was made with and with its weights, in its mode. `overrides` replaces
/// options of the fixture.
std::shared_ptr<models::ForecastModel> model_of(
    const Fixture& fixture, const models::ModelConfig& config = {},
    const nlohmann::json& overrides = nlohmann::json::object());

/// A member of a batch by the name that it has in neuralforecast; throws for another name.
at::Tensor& member(models::WindowsBatch& windows, const std::string& name);

/// Largest absolute difference, +inf if the shapes differ or a value is NaN.
double max_difference(const at::Tensor& a, const at::Tensor& b);

/// The options of a network small enough to train in milliseconds, without any dropout.
models::PatchTSTOptions tiny_options();

}  // namespace flash::tests
