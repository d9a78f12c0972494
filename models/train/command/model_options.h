#pragma once
// Command-line flags for the options of a model class, generated from the model's own list.

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace flash::models {

/// The options given by the user, for make_model, and the kinds of exogenous columns of the model.
struct ModelOptions {
  nlohmann::json given = nlohmann::json::object();
  std::vector<std::string> exogenous;  ///< among "futr_exog_list", "hist_exog_list", ...
};

/// "hidden_size" -> "--hidden-size", "MovingAvg_window" -> "--moving-avg-window"
std::string flag_of(const std::string& option);

/// A one-line description of a model class.
std::string model_description(const std::string& model_class);

/// Adds a flag for each option of the class except those that the data determines (h, input_size,
/// n_series, names of columns). Parsing fills `options`, which must outlive the app.
void add_model_options(CLI::App& app, const std::string& model_class, ModelOptions& options);

}  // namespace flash::models
