#pragma once
// Groups of options that several commands of flash_train share.

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

#include "train/command/settings.h"

namespace flash::models {

void add_csv(CLI::App& app, Settings& settings);
/// `exogenous` lists the kinds of columns that the model has; flags for other kinds are errors.
void add_data_options(CLI::App& app, Settings& settings, const std::string& model_class,
                      const std::vector<std::string>& exogenous);
/// Sizes and attention of a new model.
void add_size_options(CLI::App& app, Settings& settings, const std::string& model_class);
void add_loss_options(CLI::App& app, Settings& settings, const std::string& model_class);
void add_training_options(CLI::App& app, Settings& settings);
/// Attention of a stored model.
void add_applying_options(CLI::App& app, Settings& settings);
CLI::Option* add_sort_option(CLI::App& app, Settings& settings);
void add_season_option(CLI::App& app, Settings& settings);
void add_threads_option(CLI::App& app, Settings& settings);
void add_forecast_options(CLI::App& app, Settings& settings, const char* what);
void add_report_option(CLI::App& app, Settings& settings);

}  // namespace flash::models
