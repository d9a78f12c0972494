#pragma once
// Validation of settings that come from a file.

#include <c10/util/Exception.h>

#include <nlohmann/json.hpp>
#include <string>

#include "storage/json_text.h"
#include "train/command/settings_json.h"

namespace flash::models {

/// Reads a `Stored` that flash_train wrote to the file at `path`.
///
/// Throws nlohmann::json::exception if an entry is missing or has the wrong type, and
/// c10::ValueError if it would be converted to another value (2.5 to 2) or is unknown.
template <class Stored>
Stored read_settings(const nlohmann::json& given, const std::string& path) {
  const Stored taken = given.get<Stored>();
  const nlohmann::json written = taken;
  nlohmann::json expected = written;
  expected.merge_patch(given);
  const nlohmann::json differences = nlohmann::json::diff(written, expected);
  TORCH_CHECK_VALUE(differences.empty(), path,
                    ": expected settings as flash_train writes them, got ",
                    json_excerpt(differences[0]));
  return taken;
}

/// Throws c10::ValueError if a number is outside the range of its command-line flag. Settings of
/// data and model are checked when these are built.
void check_training_settings(const Settings& settings, const std::string& path);

/// The same for the batch size, which is stored with a model.
void check_batch_size(int64_t batch_size, const std::string& path);

}  // namespace flash::models
