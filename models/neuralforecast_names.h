#pragma once
// Names of tensors that neuralforecast's files have and the networks here do not.

#include <string>

namespace flash::models {

/// A module's name for what is learned by the window scaler "revin", see temporal_norm.h.
inline constexpr const char* kScalerPrefix = "scaler.";

/// Whether a tensor belongs to what neuralforecast puts around the network: its losses, its window
/// scaler, tensors among its hyperparameters.
inline bool is_around_the_network(const std::string& name) {
  return name.starts_with(kScalerPrefix) || name.starts_with("loss.") ||
         name.starts_with("valid_loss.") || name.starts_with("__hparams__.");
}

}  // namespace flash::models
