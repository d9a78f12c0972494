#include "train/command_line.h"

#include <CLI/CLI.hpp>

namespace flash::models {
namespace {

constexpr const char* kDescription =
    "Trains a PatchTST on columns of a CSV file, or applies a trained one.\n\n"
    "The rows are cut into training, validation and test parts in order of time and standardised "
    "with\n"
    "the training part's mean and deviation. Every column is a series of its own for one shared "
    "model.\n"
    "The model of the epoch with the least validation error is kept, and its test error is "
    "printed\n"
    "beside that of two forecasts without any model: naive (the last value goes on) and seasonal\n"
    "naive (the last season repeats).";

constexpr const char* kExamples =
    "\nExamples:\n"
    "  flash_train data/seattle-weather.csv --columns temp_max,temp_min --output "
    "weather.safetensors\n"
    "  flash_train data/seattle-weather.csv --evaluate weather.safetensors --forecast-csv "
    "forecast.csv\n"
    "  flash_train ETTh1.csv --columns OT --input-size 512 --horizon 96 --season 24\n";

/// Options that a stored model answers itself, so that --evaluate refuses them.
std::vector<CLI::Option*> add_model_options(CLI::App& app, Settings& s) {
  const char* group = "Data and model (stored with a model)";
  std::vector<CLI::Option*> options;
  const auto add = [&](CLI::Option* option) { options.push_back(option->group(group)); };
  add(app.add_option("--columns", s.data.columns,
                     "Numeric columns to forecast, e.g. temp_max,temp_min")
          ->delimiter(',')
          ->type_name("NAME,..."));
  const auto add_count = [&](const char* name, int64_t& value, const char* text) {
    add(app.add_option(name, value, text)->check(CLI::PositiveNumber)->capture_default_str());
  };
  add_count("--input-size", s.input_size, "Rows of the past that the model sees");
  add_count("--horizon", s.horizon, "Rows to forecast");
  add_count("--patch-len", s.patch_len, "Rows per patch");
  add_count("--stride", s.stride,
            "Rows between patches; attention is over input-size / stride patches");
  add_count("--hidden-size", s.hidden_size, "Width of the encoder");
  add_count("--n-heads", s.n_heads, "Attention heads");
  add_count("--encoder-layers", s.encoder_layers, "Encoder layers");
  add_count("--linear-hidden-size", s.linear_hidden_size, "Width of the feed-forward layers");
  add(app.add_option("--dropout", s.dropout, "Probability of dropping an activation in training")
          ->check(CLI::Range(0.0, 1.0))
          ->capture_default_str());
  add(app.add_option("--train-fraction", s.data.train_fraction, "Share of the rows to train on")
          ->check(CLI::Range(0.0, 1.0))
          ->capture_default_str());
  add(app.add_option("--validation-fraction", s.data.validation_fraction,
                     "Share of the rows to choose the epoch by; the rest is the test part")
          ->check(CLI::Range(0.0, 1.0))
          ->capture_default_str());
  return options;
}

std::vector<CLI::Option*> add_training_options(CLI::App& app, Settings& s) {
  const char* group = "Training";
  std::vector<CLI::Option*> options;
  const auto add = [&](CLI::Option* option) { options.push_back(option->group(group)); };
  add(app.add_option("--epochs", s.epochs, "Passes over the training part")
          ->check(CLI::PositiveNumber)
          ->capture_default_str());
  add(app.add_option("--batch-size", s.batch_size, "Windows per step")
          ->check(CLI::PositiveNumber)
          ->capture_default_str());
  add(app.add_option("--learning-rate", s.learning_rate, "Adam's step size")
          ->check(CLI::PositiveNumber)
          ->capture_default_str());
  add(app.add_option("--seed", s.seed, "Seed of weights, order of windows and dropout")
          ->capture_default_str());
  add(app.add_option("--output", s.output, "Where to write the model")
          ->type_name("FILE.safetensors"));
  return options;
}

void add_common_options(CLI::App& app, Settings& s) {
  app.add_option("csv", s.csv, "Comma-separated file whose first line names the columns")
      ->required()
      ->type_name("CSV");
  app.add_option("--attention", s.attention,
                 "flash: memory grows with the number of patches; standard: with its square. "
                 "The numbers are the same")
      ->check(CLI::IsMember({"flash", "standard"}))
      ->capture_default_str();
  app.add_option("--block-size", s.block_size, "Keys per step of flash attention")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option(
         "--season", s.data.season,
         "Rows per season of the seasonal-naive forecast: 7 suits daily rows, 24 hourly ones")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--threads", s.threads,
                 "Threads to compute with (default: as many as there are cores)")
      ->check(CLI::PositiveNumber);
  app.add_option("--forecast-csv", s.forecast_csv,
                 "Where to write the forecast of the test part beside the truth")
      ->type_name("FILE.csv");
  app.add_option("--report", s.report, "Where to write losses, errors, time and memory as JSON")
      ->type_name("FILE.json");
}

void refuse_given(const std::vector<std::vector<CLI::Option*>>& groups) {
  for (const auto& options : groups) {
    for (const CLI::Option* option : options) {
      if (option->count() == 0) continue;
      throw CLI::ValidationError(option->get_name(),
                                 "cannot be given with --evaluate, which trains nothing and takes "
                                 "the rest from the model");
    }
  }
}

}  // namespace

CommandLine parse_command_line(int argc, const char* const* argv) {
  Settings settings;
  CLI::App app(kDescription, "flash_train");
  app.footer(kExamples);
  add_common_options(app, settings);
  app.add_option("--evaluate", settings.evaluate,
                 "Train nothing: compute the test error of this model, written by --output")
      ->type_name("FILE.safetensors");
  const auto of_model = add_model_options(app, settings);
  const auto of_training = add_training_options(app, settings);
  try {
    app.parse(argc, argv);
    if (!settings.evaluate.empty()) refuse_given({of_model, of_training});
    if (settings.evaluate.empty() && settings.data.columns.empty()) {
      throw CLI::RequiredError("--columns (or --evaluate)");
    }
  } catch (const CLI::ParseError& error) {
    return {.settings = std::nullopt, .exit_code = app.exit(error) == 0 ? 0 : 2};
  }
  settings.season_given = app.count("--season") > 0;
  return {.settings = settings};
}

}  // namespace flash::models
