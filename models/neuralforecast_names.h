#pragma once
// Names of tensors in neuralforecast's files that are not part of a network.

#include <string>

namespace flash::models {

/// Prefix of the parameters of the window scaler "revin", see temporal_norm.h.
inline constexpr const char* kScalerPrefix = "scaler.";

/// Whether a tensor belongs to neuralforecast's losses, window scaler or hyperparameters instead of
/// the network.
inline bool is_outside_the_network(const std::string& name) {
  return name.starts_with(kScalerPrefix) || name.starts_with("loss.") ||
         name.starts_with("valid_loss.") || name.starts_with("__hparams__.");
}

}  // namespace flash::models
