#pragma once
// The files that flash_train writes: checked before the work, written one by one after it.

#include <functional>
#include <string>
#include <vector>

#include "train/command/settings.h"

namespace flash::models {

/// Where a training that is interrupted is written to: --checkpoint, or beside the model, or in the
/// current folder.
std::string checkpoint_path(const OutputSettings& output);

/// Where the best model so far is kept while the training goes on: beside the model, or beside the
/// checkpoint where no model is asked for.
std::string best_model_path(const OutputSettings& output);

/// What cannot be written should be known before an hour of training, not after it. Throws
/// c10::ValueError for a path that cannot be written, is not UTF-8 where a file names it, or would
/// replace an input or another output.
void check_outputs(const Settings& settings);

/// Calls `write` with a name beside `path` and removes that file again: what is to be written later
/// can be made, and the disk has room for it.
void rehearse(const std::string& path, const std::function<void(const std::string&)>& write);

/// Writes files one after the other. One that fails does not keep the others from being written.
class OutputWriter {
 public:
  /// Calls `write` unless `path` is empty.
  void write(const char* what, const std::string& path, const std::function<void()>& write);
  /// Says what was written. Throws c10::ValueError with all that went wrong.
  void finish();

 private:
  std::vector<std::string> written_, problems_;
};

}  // namespace flash::models
