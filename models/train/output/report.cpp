#include "train/output/report.h"

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>

#include "data/csv_reader.h"
#include "storage/atomic_file.h"

namespace flash::models {
namespace {

using OrderedJson = nlohmann::ordered_json;

OrderedJson to_json(const Errors& errors) { return {{"mae", errors.mae}, {"mse", errors.mse}}; }

OrderedJson to_json(const TrainingResult& training) {
  OrderedJson epochs = OrderedJson::array();
  for (size_t i = 0; i < training.epochs.size(); ++i) {
    const EpochResult& epoch = training.epochs[i];
    epochs.push_back({{"epoch", i + 1},
                      {"train_loss", epoch.train_loss},
                      {"validation_loss", epoch.validation_loss},
                      {"validation_mae", epoch.validation_mae},
                      {"validation_mse", epoch.validation_mse},
                      {"learning_rate", epoch.learning_rate},
                      {"seconds", epoch.seconds}});
  }
  return {{"epochs", epochs}, {"best_epoch", training.best_epoch}, {"seconds", training.seconds}};
}

OrderedJson to_json(const Evaluation& test) {
  OrderedJson series = OrderedJson::object();
  for (const SeriesErrors& one : test.series) {
    series[one.name] = {
        {"model", one.model}, {"naive", one.naive}, {"seasonal_naive", one.seasonal_naive}};
  }
  OrderedJson json = {{"windows", test.windows},
                      {"model", to_json(test.model)},
                      {"naive", to_json(test.naive)},
                      {"seasonal_naive", to_json(test.seasonal_naive)},
                      {"mae_in_units", series}};
  if (!test.coverage.empty()) {
    json["coverage"] = OrderedJson::object();
    for (const Coverage& one : test.coverage) json["coverage"][one.level] = one.share;
  }
  return json;
}

template <class... Values>
void print(std::ostream& stream, const char* pattern, Values... values) {
  char line[200];
  std::snprintf(line, sizeof(line), pattern, values...);
  stream << line;
}

void print_errors(std::ostream& stream, const std::string& name, const Errors& errors) {
  print(stream, "  %-34s %8.4f %8.4f\n", name.c_str(), errors.mae, errors.mse);
}

void print_series(std::ostream& stream, const RunReport& report) {
  constexpr size_t kShown = 20;
  const auto& series = report.test.series;
  stream << "Mean absolute error in units of each series\n";
  print(stream, "  %-21s %12s %8s %15s\n", "", report.model.model_class.c_str(), "naive",
        "seasonal naive");
  for (size_t i = 0; i < std::min(series.size(), kShown); ++i) {
    print(stream, "  %-21s %12.4g %8.4g %15.4g\n", printable(series[i].name).c_str(),
          series[i].model, series[i].naive, series[i].seasonal_naive);
  }
  if (series.size() > kShown) {
    print(stream, "  and %zu more, all of them in --report\n", series.size() - kShown);
  }
}

}  // namespace

ProcessMemory process_memory() {
  ProcessMemory memory{.now = 0, .peak = 0};
  std::ifstream status("/proc/self/status");
  std::string line;
  while (std::getline(status, line)) {
    long long kibibytes = 0;
    if (std::sscanf(line.c_str(), "VmRSS: %lld kB", &kibibytes) == 1) {
      memory.now = kibibytes * 1024;
    } else if (std::sscanf(line.c_str(), "VmHWM: %lld kB", &kibibytes) == 1) {
      memory.peak = kibibytes * 1024;
    }
  }
  return memory;
}

void print_report(std::ostream& stream, const RunReport& report) {
  const Evaluation& test = report.test;
  stream << "Test error over " << test.windows << " windows, in deviations of the training part\n";
  print(stream, "  %-34s %8s %8s\n", "", "MAE", "MSE");
  print_errors(stream, report.model.model_class + ", " + report.model.attention + " attention",
               test.model);
  print_errors(stream, "naive (last value)", test.naive);
  print_errors(stream, "seasonal naive (last " + std::to_string(report.season) + " rows)",
               test.seasonal_naive);
  for (const Coverage& one : test.coverage) {
    print(stream, "  %.1f %% of the values were in the %s %% interval\n", 100.0 * one.share,
          one.level.c_str());
  }
  print_series(stream, report);
  if (report.training) {
    print(stream,
          "Best epoch %lld of %zu, %.1f s of training, %.0f MB at the peak (%.0f MB before)\n",
          static_cast<long long>(report.training->best_epoch), report.training->epochs.size(),
          report.training->seconds, static_cast<double>(report.memory_peak_bytes) / 1e6,
          static_cast<double>(report.memory_before_bytes) / 1e6);
  }
}

void write_report(const std::string& path, const RunReport& report) {
  OrderedJson json = {{"csv", report.csv},
                      {"model", report.model.model_class},
                      {"options", OrderedJson::parse(report.model.options)},
                      {"input_size", report.model.input_size},
                      {"horizon", report.model.horizon},
                      {"attention", report.model.attention},
                      {"loss", report.loss},
                      {"threads", report.threads},
                      {"season", report.season},
                      {"parameters", report.parameters},
                      {"memory_before_bytes", report.memory_before_bytes},
                      {"memory_peak_bytes", report.memory_peak_bytes},
                      {"test", to_json(report.test)}};
  if (report.training && report.training_settings) {
    json["seed"] = report.training_settings->seed;
    json["batch_size"] = report.training_settings->batch_size;
    json["training"] = to_json(*report.training);
  }
  AtomicFile file(path);
  file.write(json.dump(2) + '\n');
  file.commit();
}

}  // namespace flash::models
