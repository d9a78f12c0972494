#include "train/report.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

namespace flash::models {
namespace {

using Json = nlohmann::ordered_json;

Json to_json(const Errors& errors) { return {{"mae", errors.mae}, {"mse", errors.mse}}; }

Json to_json(const TrainingResult& training) {
  Json epochs = Json::array();
  for (size_t i = 0; i < training.epochs.size(); ++i) {
    const EpochResult& epoch = training.epochs[i];
    epochs.push_back({{"epoch", i + 1},
                      {"train_loss", epoch.train_loss},
                      {"validation_loss", epoch.validation_loss},
                      {"seconds", epoch.seconds}});
  }
  return {{"epochs", epochs}, {"best_epoch", training.best_epoch}, {"seconds", training.seconds}};
}

Json to_json(const Evaluation& test) {
  Json columns = Json::object();
  for (const ColumnErrors& column : test.columns) {
    columns[column.column] = {{"model", column.model},
                              {"naive", column.naive},
                              {"seasonal_naive", column.seasonal_naive}};
  }
  return {{"windows", test.windows},
          {"model", to_json(test.model)},
          {"naive", to_json(test.naive)},
          {"seasonal_naive", to_json(test.seasonal_naive)},
          {"mae_in_units", columns}};
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
  char line[160];
  const auto row = [&](const std::string& name, const Errors& errors) {
    std::snprintf(line, sizeof(line), "  %-34s %8.4f %8.4f\n", name.c_str(), errors.mae,
                  errors.mse);
    stream << line;
  };
  stream << "Test error over " << report.test.windows
         << " windows, in deviations of the training part\n";
  std::snprintf(line, sizeof(line), "  %-34s %8s %8s\n", "", "MAE", "MSE");
  stream << line;
  row("PatchTST, " + report.attention + " attention", report.test.model);
  row("naive (last value)", report.test.naive);
  row("seasonal naive (last " + std::to_string(report.season) + " rows)",
      report.test.seasonal_naive);
  stream << "Mean absolute error in units of each column\n";
  std::snprintf(line, sizeof(line), "  %-22s %8s %8s %15s\n", "", "PatchTST", "naive",
                "seasonal naive");
  stream << line;
  for (const ColumnErrors& column : report.test.columns) {
    std::snprintf(line, sizeof(line), "  %-22s %8.4g %8.4g %15.4g\n", column.column.c_str(),
                  column.model, column.naive, column.seasonal_naive);
    stream << line;
  }
  if (report.training) {
    std::snprintf(
        line, sizeof(line),
        "Best epoch %lld of %zu, %.1f s of training, %.0f MB at the peak (%.0f MB before)\n",
        static_cast<long long>(report.training->best_epoch), report.training->epochs.size(),
        report.training->seconds, static_cast<double>(report.memory_peak_bytes) / 1e6,
        static_cast<double>(report.memory_before_bytes) / 1e6);
    stream << line;
  }
}

void write_report(const std::string& path, const RunReport& report, const Settings& settings) {
  Json json = {{"csv", settings.csv},
               {"attention", report.attention},
               {"threads", report.threads},
               {"season", report.season},
               {"parameters", report.parameters},
               {"patches", report.patches},
               {"memory_before_bytes", report.memory_before_bytes},
               {"memory_peak_bytes", report.memory_peak_bytes},
               {"test", to_json(report.test)}};
  if (report.training) {
    json["seed"] = settings.seed;
    json["batch_size"] = settings.batch_size;
    json["training"] = to_json(*report.training);
  }
  std::ofstream stream(path);
  stream << json.dump(2) << '\n';
  stream.close();
  TORCH_CHECK_VALUE(stream, path, ": cannot be written: ", std::strerror(errno));
}

}  // namespace flash::models
