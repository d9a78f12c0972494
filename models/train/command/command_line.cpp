#include "train/command/command_line.h"

#include <flash_attention/models/registry.h>

#include <CLI/CLI.hpp>

#include "train/command/command_options.h"
#include "train/command/model_options.h"

namespace flash::models {
namespace {

constexpr const char* kDescription =
    "Trains a forecaster on columns of a CSV file, or applies a trained one. One command per\n"
    "model; `flash_train PatchTST --help` lists its options.";

constexpr const char* kTrainingNotes =
    "\nThe rows are split in order of time into training, validation and test parts, and\n"
    "standardised with the training part's mean and deviation. Every target is a series; one\n"
    "model serves all. The model of the epoch with the smallest validation loss is kept, and its\n"
    "test error is printed next to those of two forecasts that need no model: naive (repeats the\n"
    "last value) and seasonal naive (repeats the last season). Ctrl-C writes a checkpoint, from\n"
    "which `flash_train resume` continues.";

constexpr const char* kExamples =
    "\nExamples:\n"
    "  flash_train PatchTST data/seattle-weather.csv --target temp_max,temp_min --output "
    "weather.safetensors\n"
    "  flash_train evaluate weather.safetensors data/seattle-weather.csv\n"
    "  flash_train predict weather.safetensors data/seattle-weather.csv --forecast-csv "
    "forecast.csv\n"
    "  flash_train resume weather.safetensors.checkpoint\n"
    "  flash_train iTransformer ETTh1.csv --target HUFL,HULL,MUFL,MULL,LUFL,LULL,OT\n"
    "      --input-size 96 --horizon 96 --train-rows 8640 --validation-rows 2880 --test-rows 2880\n"
    "      --season 24\n";

/// Listing the options requires a model of the class, so only the selected class gets its flags.
void add_model_command(CLI::App& app, const std::string& model_class, bool asked_for,
                       Settings& settings, ModelOptions& options) {
  CLI::App* command = app.add_subcommand(model_class, model_description(model_class));
  if (!asked_for) return;
  command->footer(kTrainingNotes);
  command->callback([&settings, &options, model_class] {
    settings.command = Settings::Command::kTrain;
    settings.model.model_class = model_class;
    settings.model.options = options.given.dump();
  });
  add_csv(*command, settings);
  add_size_options(*command, settings, model_class);
  add_model_options(*command, model_class, options);
  add_data_options(*command, settings, model_class, options.exogenous);
  add_loss_options(*command, settings, model_class);
  add_training_options(*command, settings);
  add_season_option(*command, settings);
  add_threads_option(*command, settings);
  add_forecast_options(*command, settings, "the test part, with the true values");
  add_report_option(*command, settings);
}

void add_evaluate_command(CLI::App& app, Settings& settings) {
  CLI::App* command = app.add_subcommand("evaluate", "Test error of a stored model");
  command->callback([&settings, command] {
    settings.command = Settings::Command::kEvaluate;
    settings.season_given = command->count("--season") > 0;
    settings.batch_size_given = command->count("--batch-size") > 0;
  });
  add_applying_options(*command, settings);
  add_csv(*command, settings);
  add_season_option(*command, settings);
  add_threads_option(*command, settings);
  add_forecast_options(*command, settings, "the test part, with the true values");
  add_report_option(*command, settings);
}

void add_predict_command(CLI::App& app, Settings& settings) {
  CLI::App* command = app.add_subcommand("predict", "Forecast beyond the last row of a table");
  command->footer(
      "\nColumns of --futr-exog must be known: the table goes on with rows that have them and an\n"
      "empty target. Without such columns it may end with the last known value.");
  command->callback([&settings, command] {
    settings.command = Settings::Command::kPredict;
    settings.season_given = command->count("--season") > 0;
    settings.batch_size_given = command->count("--batch-size") > 0;
    if (settings.output.forecast_csv.empty() && settings.output.forecast_png.empty()) {
      throw CLI::RequiredError("--forecast-csv or --forecast-png");
    }
  });
  add_applying_options(*command, settings);
  add_csv(*command, settings);
  add_season_option(*command, settings);
  add_threads_option(*command, settings);
  add_forecast_options(*command, settings, "the rows to come");
}

void add_resume_command(CLI::App& app, Settings& settings) {
  CLI::App* command = app.add_subcommand(
      "resume", "Go on with an interrupted training, to the same bits as without interruption");
  command->callback([&settings] { settings.command = Settings::Command::kResume; });
  command->add_option("checkpoint", settings.input, "The file that the training wrote")
      ->required()
      ->type_name("FILE");
}

}  // namespace

CommandLine parse_command_line(int argc, const char* const* argv) {
  Settings settings;
  ModelOptions options;
  CLI::App app(kDescription, "flash_train");
  app.footer(kExamples);
  app.require_subcommand(1);
  for (const std::string& name : model_classes()) {
    add_model_command(app, name, argc > 1 && name == argv[1], settings, options);
  }
  add_evaluate_command(app, settings);
  add_predict_command(app, settings);
  add_resume_command(app, settings);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return {.settings = std::nullopt, .exit_code = app.exit(error) == 0 ? 0 : 2};
  }
  return {.settings = settings};
}

}  // namespace flash::models
