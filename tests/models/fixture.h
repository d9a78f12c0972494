#pragma once
// Weights, inputs, outputs and gradients that the Python original computed; see
// tests/fixtures/make_fixtures.py for what the keys mean.

#include <flash_attention/models/patchtst.h>
#include <flash_attention/models/safetensors.h>

#include <nlohmann/json.hpp>
#include <string>

namespace flash::tests {

struct Fixture {
  nlohmann::json description;
  models::TensorMap tensors;

  /// The tensors under `prefix`, without it.
  models::TensorMap under(const std::string& prefix) const;
  const at::Tensor& at(const std::string& key) const { return tensors.at(key); }
};

Fixture load_fixture(const std::string& name);

/// The options that the fixture's model was built with.
models::PatchTSTOptions patchtst_options(const Fixture& fixture);

/// Largest absolute difference, +inf if the shapes differ or a value is NaN.
double max_difference(const at::Tensor& a, const at::Tensor& b);

/// The options of a network small enough to train in milliseconds, without any dropout.
models::PatchTSTOptions tiny_options();

}  // namespace flash::tests
