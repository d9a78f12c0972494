#pragma once
// The options of one model class on the command line, made from the list that the model itself has.

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace flash::models {

/// Options given by the user, as make_model takes them, and which exogenous columns there may be.
struct ModelOptions {
  nlohmann::json given = nlohmann::json::object();
  std::vector<std::string> exogenous;  ///< among "futr_exog_list", "hist_exog_list", ...
};

/// "hidden_size" -> "--hidden-size", "MovingAvg_window" -> "--moving-avg-window"
std::string flag_of(const std::string& option);

/// One line about a model class.
std::string model_description(const std::string& model_class);

/// Adds a flag for each option of the class but those that the data decides (h, input_size,
/// n_series, names of columns). Parsing fills `options`, which must outlive the app.
void add_model_options(CLI::App& app, const std::string& model_class, ModelOptions& options);

}  // namespace flash::models
