#include "train/command/command_options.h"

#include <flash_attention/models/losses.h>
#include <flash_attention/models/temporal_norm.h>

#include <algorithm>

#include "data/csv_reader.h"
#include "neuralforecast_names.h"
#include "train/command/number_checks.h"
#include "train/output/table_forecaster.h"

namespace flash::models {
namespace {

constexpr const char* kOutput = "Output";

/// Adds options to a group of the help text.
class Group {
 public:
  Group(CLI::App& app, const char* name) : app_(app), name_(name) {}

  template <class Value>
  CLI::Option* add(const char* flag, Value& value, const std::string& text) {
    return app_.add_option(flag, value, text)->group(name_)->capture_default_str();
  }
  CLI::Option* count(const char* flag, int64_t& value, const std::string& text) {
    return add(flag, value, text)->transform(whole_number(1));
  }
  CLI::Option* names(const char* flag, std::vector<std::string>& value, const std::string& text) {
    return app_.add_option(flag, value, text)->group(name_)->delimiter(',')->type_name("NAME,...");
  }
  CLI::Option* numbers(const char* flag, std::vector<double>& value, const std::string& text) {
    return app_.add_option(flag, value, text)
        ->group(name_)
        ->delimiter(',')
        ->type_name("X,...")
        ->transform(real_number());
  }
  CLI::Option* file(const char* flag, std::string& value, const std::string& text,
                    const char* type) {
    return app_.add_option(flag, value, text)->group(name_)->type_name(type);
  }

 private:
  CLI::App& app_;
  const char* name_;
};

/// TFT is the only model with historic and static columns.
std::string no_such_columns(const std::string& model_class, const std::string& list) {
  return model_class + " takes no such columns; " +
         (list == "futr_exog_list" ? "TFT, Informer, Autoformer, FEDformer and iTransformer do"
                                   : "TFT does");
}

std::vector<std::string> losses_offered() {
  std::vector<std::string> names;
  for (const std::string& name : loss_names()) {
    if (name != "DistributionLoss") names.push_back(name);
  }
  names.insert(names.end(), distribution_names().begin(), distribution_names().end());
  return names;
}

}  // namespace

void add_csv(CLI::App& app, Settings& s) {
  app.add_option("csv", s.csv, "Comma-separated file whose first line names the columns")
      ->required()
      ->type_name("CSV");
}

void add_data_options(CLI::App& app, Settings& s, const std::string& model_class,
                      const std::vector<std::string>& exogenous) {
  Group data(app, "Data (stored with the model)");
  PanelColumns& columns = s.data.columns;
  data.names("--target", columns.targets,
             "Numeric columns to forecast, each a series of its own, e.g. temp_max,temp_min")
      ->required();
  CLI::Option* time = data.file("--time-column", columns.time_column,
                                "The time of each row: ISO dates, dates with a time, or integers "
                                "[the first otherwise unused column of dates; if there is none, "
                                "the first unused column, if it holds integers]",
                                "NAME");
  CLI::Option* no_time =
      app.add_flag("--no-time-column", columns.untimed,
                   "The file has no time column, and its rows are in order of time")
          ->group("Data (stored with the model)")
          ->excludes(time);
  add_sort_option(app, s)->group("Data (stored with the model)")->excludes(no_time);
  data.file("--id-column", columns.id_column,
            "For a long table: the column that tells which series a row belongs to", "NAME");
  const auto add_exogenous = [&](const char* flag, const std::string& list,
                                 std::vector<std::string>& names, const char* text) {
    CLI::Option* option = data.names(flag, names, text);
    if (std::find(exogenous.begin(), exogenous.end(), list) != exogenous.end()) return;
    option->group("")->check(
        [flag, message = no_such_columns(model_class, list)](const std::string&) -> std::string {
          throw CLI::ValidationError(flag, message);
        });
  };
  add_exogenous("--futr-exog", "futr_exog_list", columns.futr_exog,
                "Columns that help to forecast, known for past and future");
  add_exogenous("--hist-exog", "hist_exog_list", columns.hist_exog,
                "Columns that help to forecast, known for the past");
  add_exogenous("--stat-exog", "stat_exog_list", columns.stat_exog,
                "Columns that help to forecast, with one value per series");
  SplitSettings& split = s.data.split;
  data.add("--train-fraction", split.train_fraction, "Fraction of the rows to train on")
      ->transform(real_number(0.0, 1.0));
  data.add("--validation-fraction", split.validation_fraction,
           "Fraction of the rows that select the epoch; the rest is the test part")
      ->transform(real_number(0.0, 1.0));
  const auto rows = [&](const char* flag, int64_t& value, const char* text) {
    return app.add_option(flag, value, text)
        ->group("Data (stored with the model)")
        ->transform(whole_number(1))
        ->excludes("--train-fraction")
        ->excludes("--validation-fraction");
  };
  rows("--train-rows", split.train_rows, "Number of rows to train on, instead of a fraction");
  rows("--validation-rows", split.validation_rows, "Number of rows that select the epoch")
      ->needs("--train-rows");
  rows("--test-rows", split.test_rows, "Number of rows of the test part [the rest]")
      ->needs("--validation-rows");
  app.get_option("--train-rows")->needs("--validation-rows");
  data.add("--table-scaler", s.data.table_scaler,
           "standard: gives each column mean 0 and deviation 1 over the training part; none: "
           "leaves it unchanged, for losses of counts")
      ->check(CLI::IsMember({"standard", "none"}));
}

void add_size_options(CLI::App& app, Settings& s, const std::string& model_class) {
  Group model(app, "Model");
  model.count("--input-size", s.model.input_size, "Rows of the past that the model sees");
  model.count("--horizon", s.model.horizon, "Rows to forecast");
  s.model.attention = default_attention(model_class);
  const bool native = s.model.attention == "native";
  std::vector<std::string> kinds = {"flash", "standard"};
  if (native) kinds.insert(kinds.begin(), "native");
  model
      .add("--attention", s.model.attention,
           native ? "native: the paper's mechanism; flash or standard: exact attention instead, "
                    "which is a different model; its memory grows with the length or its square"
                  : "flash: memory grows with the length; standard: with its square. The results "
                    "are the same")
      ->check(CLI::IsMember(kinds));
  model.count("--block-size", s.model.block_size, "Keys per step of flash attention");
  app.add_flag(
         "--gradient-checkpointing", s.model.gradient_checkpointing,
         "Recompute each layer in the backward pass: less memory, more time, the same results")
      ->group("Model");
}

void add_loss_options(CLI::App& app, Settings& s, const std::string& model_class) {
  Group loss(app, "Loss (stored with the model)");
  loss.add("--loss", s.loss.name,
           "The loss to minimise; MQLoss and distributions also forecast intervals")
      ->check(CLI::IsMember(losses_offered()));
  loss.numbers("--level", s.loss.level,
               "Widths of the intervals in percent, of MQLoss and distributions")
      ->default_str("80,90");
  loss.numbers("--quantiles", s.loss.quantiles, "Quantiles to forecast instead of --level")
      ->excludes("--level");
  loss.add("--q", s.loss.q, "The quantile of QuantileLoss")->transform(real_number());
  loss.add("--delta", s.loss.delta, "Where HuberLoss becomes linear")->transform(real_number());
  s.loss.scaler_type = default_scaler_type(model_class);
  loss.add("--scaler-type", s.loss.scaler_type, "Normalises each window before the model sees it")
      ->check(CLI::IsMember(scaler_types()));
}

void add_training_options(CLI::App& app, Settings& s) {
  Group training(app, "Training");
  TrainingSettings& t = s.training;
  training.count("--epochs", t.epochs, "Passes over the training part");
  training
      .add("--patience", t.patience,
           "Stop after this many epochs without an improvement; 0: never stop early")
      ->transform(whole_number(0));
  training.count("--batch-size", t.batch_size, "Windows per step");
  training.add("--learning-rate", t.learning_rate, "Adam's step size")
      ->transform(positive_number());
  training.add("--decay", t.decay, "Factor applied to the learning rate after each epoch")
      ->transform(real_number(0.0, 1.0));
  training.add("--decay-after", t.decay_after, "Epochs before the first decay")
      ->transform(whole_number(0));
  training.add("--seed", t.seed, "Seed of weights, order of windows and dropout")
      ->transform(unsigned_number());
  training.file("--output", s.output.model, "Where to write the model", "FILE.safetensors");
  training.file("--checkpoint", s.output.checkpoint,
                "Where to write the state of the training after each epoch, for `flash_train "
                "resume`; Ctrl-C writes it even without this option [OUTPUT.checkpoint]",
                "FILE");
}

void add_applying_options(CLI::App& app, Settings& s) {
  app.add_option("model", s.input, "A model written by --output")
      ->required()
      ->type_name("FILE.safetensors");
  app.add_option("--attention", s.model.attention, "flash or standard [that of the training]")
      ->check(CLI::IsMember({"native", "flash", "standard"}));
  app.add_option("--block-size", s.model.block_size, "Keys per step of flash attention")
      ->transform(whole_number(1))
      ->capture_default_str();
  app.add_option("--batch-size", s.training.batch_size, "Windows at a time [as in the training]")
      ->transform(whole_number(1));
  add_sort_option(app, s);
}

CLI::Option* add_sort_option(CLI::App& app, Settings& s) {
  return app.add_flag("--sort", s.data.columns.sort, "Sort the rows of each series by time first");
}

void add_season_option(CLI::App& app, Settings& s) {
  app.add_option(
         "--season", s.data.season,
         "Rows per season of the seasonal-naive forecast: 7 suits daily rows, 24 hourly ones")
      ->transform(whole_number(1))
      ->capture_default_str()
      ->group(kOutput);
}

void add_threads_option(CLI::App& app, Settings& s) {
  constexpr int64_t kMostThreads = 1024;  // with many thousands, thread creation aborts the program
  app.add_option("--threads", s.threads, "Number of threads [one per core]")
      ->transform(whole_number(1, kMostThreads))
      ->group(kOutput);
}

void add_forecast_options(CLI::App& app, Settings& s, const char* what) {
  app.add_option("--forecast-csv", s.output.forecast_csv,
                 std::string("Where to write the forecast of ") + what)
      ->type_name("FILE.csv")
      ->group(kOutput);
  app.add_option("--forecast-png", s.output.forecast_png,
                 std::string("Where to draw the forecast of ") + what)
      ->type_name("FILE.png")
      ->group(kOutput);
}

void add_report_option(CLI::App& app, Settings& s) {
  app.add_option("--report", s.output.report,
                 "Where to write losses, errors, time and memory as JSON")
      ->type_name("FILE.json")
      ->group(kOutput);
}

}  // namespace flash::models
