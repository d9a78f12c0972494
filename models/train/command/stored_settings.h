#pragma once
// Settings that come from a file, in which a number may be anything.

#include <c10/util/Exception.h>

#include <nlohmann/json.hpp>
#include <string>

#include "storage/json_text.h"
#include "train/command/settings_json.h"

namespace flash::models {

/// `Stored` from what flash_train wrote of it in the file at `path`.
///
/// Throws nlohmann::json::exception where an entry is missing or of another type, and
/// c10::ValueError where it would be taken for another value (2.5 for 2) or is not known.
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

/// Throws c10::ValueError where a number is none that the command line takes. What belongs to data
/// and model is checked where those are made.
void check_training_settings(const Settings& settings, const std::string& path);

/// The same for the number of windows at a time, which a model is stored with.
void check_batch_size(int64_t batch_size, const std::string& path);

}  // namespace flash::models
