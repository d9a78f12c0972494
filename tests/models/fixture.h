#pragma once
// Fixtures: weights, inputs, outputs and gradients of neuralforecast's models. The keys are
// explained in tests/fixtures/make_fixtures.py.

#include <flash_attention/models/forecast_model.h>
#include <flash_attention/models/patchtst.h>
#include <flash_attention/models/safetensors.h>

#include <nlohmann/json.hpp>
#include <string>

namespace flash::tests {

struct Fixture {
  nlohmann::json description;
  models::TensorMap tensors;

  /// The tensors whose names start with `prefix`, without it. Tensors that are stored as `<key>#ri`
  /// with a last dimension of 2 are complex here.
  models::TensorMap under(const std::string& prefix) const;
  const at::Tensor& at(const std::string& key) const { return tensors.at(key); }
  /// All tensors of a model: the stored ones, shared ones under each name, and the model's own for
  /// constants that fixtures omit (position tables, masks).
  models::TensorMap parameters_for(const torch::nn::Module& module) const;
  /// `input/*` in a dtype.
  models::WindowsBatch windows(at::ScalarType dtype) const;
};

Fixture load_fixture(const std::string& name);

/// The path of a safetensors file among the fixtures.
std::string fixture_path(const std::string& name);

/// The fixture's model with its weights, in its mode. `overrides` replaces options of the fixture.
std::shared_ptr<models::ForecastModel> model_of(
    const Fixture& fixture, const models::ModelConfig& config = {},
    const nlohmann::json& overrides = nlohmann::json::object());

/// A member of a batch by its name in neuralforecast; throws for an unknown name.
at::Tensor& member(models::WindowsBatch& windows, const std::string& name);

/// Largest absolute difference, +inf if the shapes differ or a value is NaN.
double max_difference(const at::Tensor& a, const at::Tensor& b);

/// Options of a network without dropout that trains in milliseconds.
models::PatchTSTOptions tiny_options();

}  // namespace flash::tests
