#pragma once
// Names in neuralforecast's files: keys of the metadata, tensors that are not part of a network,
// and the scaler of a model whose file names none.

#include <string>

namespace flash::models {

inline constexpr const char* kModelClass = "model_class";
inline constexpr const char* kHyperParameters = "hyper_parameters";

/// Prefix of the parameters of the window scaler "revin", see temporal_norm.h.
inline constexpr const char* kScalerPrefix = "scaler.";

/// Whether a tensor belongs to neuralforecast's losses, window scaler or hyperparameters instead of
/// the network.
inline bool is_outside_the_network(const std::string& name) {
  return name.starts_with(kScalerPrefix) || name.starts_with("loss.") ||
         name.starts_with("valid_loss.") || name.starts_with("__hparams__.");
}

/// The window scaler of a model that is given none.
inline std::string default_scaler_type(const std::string& model_class) {
  return model_class == "TFT" ? "robust" : "identity";
}

}  // namespace flash::models
