#include "train/loop/best_model.h"

#include <filesystem>
#include <iostream>

#include "train/loop/interrupt.h"
#include "train/output/outputs.h"

namespace flash::models {
namespace {

/// Writes the model and returns the error message; "" on success.
std::string try_to_save(const std::string& path, const TableForecaster& forecaster) {
  try {
    const HoldInterrupts hold;
    save_forecaster(path, forecaster);
  } catch (const c10::Error& error) {
    return error.what_without_backtrace();
  } catch (const std::exception& error) {
    return path + ": " + error.what();
  }
  return "";
}

}  // namespace

BestModel::BestModel(const OutputSettings& output, bool resumed)
    : output_(output.model), kept_path_(best_model_path(output)) {
  std::error_code ignored;
  if (resumed && std::filesystem::exists(kept_path_, ignored)) on_disk_ = kept_path_;
}

void BestModel::keep(const TableForecaster& forecaster, int64_t epoch) {
  if (output_.empty()) return;
  const std::string problem = try_to_save(kept_path_, forecaster);
  if (problem.empty()) {
    on_disk_ = kept_path_;
    epoch_ = epoch;
  } else {
    std::cerr << "flash_train: " << problem << "; the training goes on, with the weights of epoch "
              << epoch << " in memory alone" << std::endl;
  }
}

void BestModel::finish(const TableForecaster& forecaster, int64_t best_epoch) {
  {
    const HoldInterrupts hold;
    save_forecaster(output_, forecaster);
  }
  std::error_code ignored;
  if (!on_disk_.empty()) std::filesystem::remove(on_disk_, ignored);
  on_disk_ = output_;
  epoch_ = best_epoch;
}

std::string BestModel::rescue(const TableForecaster& forecaster, const TrainingState& state) {
  const int64_t best = state.result.best_epoch;
  if (best == 0) return "";
  std::error_code ignored;
  std::string problems;
  if (epoch_ != best || !std::filesystem::exists(on_disk_, ignored)) {
    on_disk_.clear();
    forecaster.load_state(state.best);
    // Tries the right place first, then other folders: if one is full or gone, another may not be.
    const std::string name = std::filesystem::path(kept_path_).filename().string();
    const auto temporary = std::filesystem::temp_directory_path(ignored);
    for (const std::string& path : {kept_path_, (temporary / name).string(), name}) {
      const std::string problem = try_to_save(path, forecaster);
      if (problem.empty()) {
        on_disk_ = path;
        epoch_ = best;
        break;
      }
      problems += "; " + problem;
    }
  }
  if (on_disk_.empty()) {
    return "the weights of epoch " + std::to_string(best) + ", the best, are lost" + problems;
  }
  return where();
}

std::string BestModel::where() const {
  if (on_disk_.empty() || epoch_ == 0) return "";
  return "the model of epoch " + std::to_string(epoch_) + ", the best so far, is in " + on_disk_;
}

}  // namespace flash::models
