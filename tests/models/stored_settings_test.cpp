// Validation of settings in files of flash_train.

#include "train/command/stored_settings.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "models/temporary_file.h"
#include "models/training_session.h"

namespace flash::tests {
namespace {

using nlohmann::json;
using testing::HasSubstr;

/// The error message for a file of one of the two kinds that has `value` at `where`.
template <class Read>
std::string settings_refusal(const models::SafetensorsFile& file, const std::string& key,
                             const std::string& where, const json& value, const Read& read) {
  models::SafetensorsFile changed = file;
  json description = json::parse(file.metadata.at(key));
  description.at(json::json_pointer(where)) = value;
  changed.metadata[key] = description.dump();
  const TemporaryFile path(".safetensors");
  models::write_safetensors(path.path(), changed.tensors, changed.metadata);
  try {
    read(path.path());
  } catch (const c10::ValueError& error) {
    EXPECT_THAT(error.what_without_backtrace(), HasSubstr(path.path()));
    return error.what_without_backtrace();
  }
  return "not refused";
}

TEST(StoredSettings, OfATrainingAreChecked) {
  const Session session(quick_settings());
  const TemporaryFile path(".checkpoint");
  session.save(path.path());
  const auto file = models::read_safetensors(path.path());
  const auto refused = [&](const char* where, const json& value) {
    return settings_refusal(file, "flash_train_run", where, value,
                            [](const std::string& changed) { models::read_run(changed); });
  };
  EXPECT_EQ(refused("/settings/training/epochs", 3), "not refused");
  const int64_t huge = int64_t{1} << 62;
  for (const json& value : {json(0), json(-1), json(huge)}) {
    EXPECT_THAT(refused("/settings/training/batch_size", value),
                HasSubstr("expected batch_size between 1 and 4294967296, got " + value.dump()));
    EXPECT_THAT(refused("/settings/training/epochs", value), HasSubstr("expected epochs between"));
  }
  EXPECT_THAT(refused("/settings/threads", 1'000'000'000), HasSubstr("expected threads between"));
  EXPECT_THAT(refused("/settings/training/patience", -1), HasSubstr("expected patience between"));
  EXPECT_THAT(refused("/settings/training/decay", 2.0), HasSubstr("expected decay between 0 and"));
  EXPECT_THAT(refused("/settings/training/learning_rate", -0.5), HasSubstr("expected a learning_"));
  // A conversion would turn these into integers.
  for (const json& value : {json(2.5), json(1e300)}) {
    EXPECT_THAT(refused("/settings/training/epochs", value),
                HasSubstr("expected settings as flash_train writes them, got"));
    EXPECT_THAT(refused("/settings/model/input_size", value), HasSubstr("/model/input_size"));
  }
  EXPECT_THAT(refused("/settings/model", json::array()), HasSubstr("as flash_train writes it"));
  EXPECT_THAT(refused("/settings/model/options", nullptr), HasSubstr("as flash_train writes it"));
}

TEST(StoredSettings, OfAModelAreChecked) {
  const Session session(quick_settings());
  const TemporaryFile path(".safetensors");
  models::save_forecaster(path.path(), session.forecaster);
  const auto file = models::read_safetensors(path.path());
  const auto refused = [&](const char* where, const json& value) {
    return settings_refusal(file, "flash_train", where, value, [](const std::string& changed) {
      models::load_forecaster(changed, "", 64);
    });
  };
  EXPECT_EQ(refused("/batch_size", 7), "not refused");
  EXPECT_THAT(refused("/batch_size", 0), HasSubstr("expected batch_size between 1 and"));
  EXPECT_THAT(refused("/model/horizon", 2.5), HasSubstr("/horizon"));
  EXPECT_THAT(refused("/data/season", 1e300), HasSubstr("/season"));
  EXPECT_THAT(refused("/loss/level", json::array({true})), HasSubstr("as flash_train writes it"));
  std::string deep;
  for (int i = 0; i < 1'000'000; ++i) deep += "[";
  EXPECT_THAT(refused("/model/options", "{\"h\":" + deep),
              HasSubstr("expected the model's options as a JSON object nested at most 64 deep"));
}

}  // namespace
}  // namespace flash::tests
