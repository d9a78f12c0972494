#include "train/output/outputs.h"

#include <c10/util/Exception.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <iostream>

#include "data/csv_reader.h"
#include "storage/atomic_file.h"
#include "train/output/picture.h"

namespace flash::models {
namespace {

namespace fs = std::filesystem;

bool is_device(const std::string& path) {
  std::error_code none;
  return fs::exists(path, none) && !fs::is_regular_file(path, none) &&
         !fs::is_directory(path, none);
}

/// A file and its description in messages.
struct NamedFile {
  const char* name;
  std::string path;
};

void check_writable(const NamedFile& file) {
  const fs::path parent = fs::absolute(file.path).parent_path();
  TORCH_CHECK_VALUE(access(parent.c_str(), W_OK) == 0, file.path, " (", file.name,
                    "): cannot be written, as the folder ", parent.string(),
                    " is not writable: ", std::strerror(errno));
  TORCH_CHECK_VALUE(!fs::is_directory(file.path), file.path,
                    ": expected a file to write, got a folder (", file.name, ")");
  AtomicFile::check(file.path);
}

void check_different(const std::vector<NamedFile>& inputs, const std::vector<NamedFile>& outputs) {
  std::vector<NamedFile> seen = inputs;
  for (const NamedFile& output : outputs) {
    for (const NamedFile& other : seen) {
      std::error_code none;
      TORCH_CHECK_VALUE(is_device(output.path) || fs::weakly_canonical(output.path, none) !=
                                                      fs::weakly_canonical(other.path, none),
                        "expected different files as ", other.name, " and ", output.name, ", got ",
                        output.path, " for both");
    }
    seen.push_back(output);
  }
}

}  // namespace

std::string checkpoint_path(const OutputSettings& output) {
  if (!output.checkpoint.empty()) return output.checkpoint;
  const bool kept = !output.model.empty() && !is_device(output.model);
  return (kept ? output.model : "flash_train") + ".checkpoint";
}

std::string best_model_path(const OutputSettings& output) {
  const bool kept = !output.model.empty() && !is_device(output.model);
  return (kept ? output.model : checkpoint_path(output)) + ".best";
}

void check_outputs(const Settings& settings) {
  const OutputSettings& output = settings.output;
  const bool trains = settings.command == Settings::Command::kTrain ||
                      settings.command == Settings::Command::kResume;
  std::vector<NamedFile> inputs{{"the table", settings.csv}};
  std::vector<NamedFile> outputs;
  if (!trains) inputs.push_back({"the model", settings.input});
  for (const NamedFile& file :
       {NamedFile{"--output", output.model}, NamedFile{"--forecast-csv", output.forecast_csv},
        NamedFile{"--forecast-png", output.forecast_png}, NamedFile{"--report", output.report}}) {
    if (!file.path.empty()) outputs.push_back(file);
  }
  if (trains) {
    outputs.push_back({output.checkpoint.empty()
                           ? "the checkpoint that Ctrl-C writes, named by --checkpoint"
                           : "--checkpoint",
                       checkpoint_path(output)});
    outputs.push_back({"the best model while training", best_model_path(output)});
  }
  if (trains || !output.report.empty()) {
    for (const auto& files : {inputs, outputs}) {
      for (const NamedFile& file : files) {
        TORCH_CHECK_VALUE(is_utf8(file.path), "expected a path in UTF-8 as ", file.name,
                          ", as checkpoint and report name it, got ", printable(file.path));
      }
    }
  }
  check_different(inputs, outputs);
  for (const NamedFile& file : outputs) check_writable(file);
  if (!output.forecast_png.empty()) check_pictures();
}

void rehearse(const std::string& path, const std::function<void(const std::string&)>& write) {
  if (is_device(path)) return;
  const std::string trial = AtomicFile::unique_name(fs::weakly_canonical(path).string());
  struct Remove {
    const std::string& trial;
    ~Remove() { unlink(trial.c_str()); }
  } remove{trial};
  try {
    write(trial);
  } catch (const c10::Error& error) {
    std::string message = error.what_without_backtrace();
    if (message.starts_with(trial)) message.replace(0, trial.size(), path);
    TORCH_CHECK_VALUE(false, message);
  }
}

void OutputWriter::write(const char* what, const std::string& path,
                         const std::function<void()>& write) {
  if (path.empty()) return;
  try {
    write();
    written_.push_back(std::string(what) + " written to " + path);
  } catch (const c10::Error& error) {
    problems_.emplace_back(error.what_without_backtrace());
  } catch (const std::exception& error) {
    problems_.emplace_back(path + ": " + error.what());
  }
}

void OutputWriter::finish() {
  for (const std::string& line : written_) std::cout << line << "\n";
  std::cout << std::flush;
  std::string text;
  for (const std::string& problem : problems_) text += (text.empty() ? "" : "\n") + problem;
  TORCH_CHECK_VALUE(problems_.empty(), text);
}

}  // namespace flash::models
