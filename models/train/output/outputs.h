#pragma once
// The output files of flash_train: checked before the run, written after it.

#include <functional>
#include <string>
#include <vector>

#include "train/command/settings.h"

namespace flash::models {

/// Where an interrupted training is saved: --checkpoint, or next to the model, or in the current
/// folder.
std::string checkpoint_path(const OutputSettings& output);

/// Where the best model so far is saved during training: next to the model, or next to the
/// checkpoint if no model was requested.
std::string best_model_path(const OutputSettings& output);

/// Checks all outputs before the run, so that no training is lost to an output that cannot be
/// written. Throws c10::ValueError for a path that cannot be written, that is not UTF-8 but has to
/// be stored in a file, or that would replace an input or another output.
void check_outputs(const Settings& settings);

/// Calls `write` with an unused name next to `path` and removes that file again, to test that the
/// file can be produced and that the disk has space for it.
void rehearse(const std::string& path, const std::function<void(const std::string&)>& write);

/// Writes files one at a time; if one fails, the others are still written.
class OutputWriter {
 public:
  /// Calls `write` unless `path` is empty.
  void write(const char* what, const std::string& path, const std::function<void()>& write);
  /// Prints what was written. Throws c10::ValueError with all errors.
  void finish();

 private:
  std::vector<std::string> written_, problems_;
};

}  // namespace flash::models
