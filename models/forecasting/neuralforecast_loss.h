#pragma once
// The loss in the hyperparameters of neuralforecast's files.

#include <flash_attention/models/losses.h>

#include <memory>
#include <nlohmann/json.hpp>

namespace flash::models {

/// The loss that `hyper_parameters` names under "loss", as neuralforecast 3.3 writes it:
///     {"__nf__": "loss", "cls": "MQLoss", "args": {"level": [80, 90], "quantiles": null, ...},
///      "state": {"output_names": ["-median", "-lo-90", ...], ...}}
/// Without one, MAE, neuralforecast's default. Throws c10::ValueError if it is another one than
/// those of losses.h, or malformed.
std::shared_ptr<Loss> neuralforecast_loss(const nlohmann::json& hyper_parameters);

}  // namespace flash::models
