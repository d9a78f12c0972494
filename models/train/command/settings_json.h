#pragma once
// Settings as JSON, for files of models and of interrupted trainings. Reading throws
// nlohmann::json::exception if an entry is missing or has the wrong type.

#include <c10/util/Exception.h>

#include <nlohmann/json.hpp>
#include <string>

#include "train/command/settings.h"

namespace flash::models {

// With defaults for `untimed` and `sort`, which older files lack.
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE_WITH_DEFAULT(PanelColumns, targets, time_column, id_column,
                                                futr_exog, hist_exog, stat_exog, untimed, sort)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(SplitSettings, train_fraction, validation_fraction, train_rows,
                                   validation_rows, test_rows)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(DataSettings, columns, split, table_scaler, season)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(ModelSettings, model_class, options, input_size, horizon,
                                   attention, block_size, gradient_checkpointing)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(LossSettings, name, level, quantiles, q, delta, scaler_type)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(TrainingSettings, epochs, patience, batch_size, learning_rate,
                                   decay, decay_after, seed)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(OutputSettings, model, checkpoint, forecast_csv, forecast_png,
                                   report)
// Without `command` and `input`.
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(Settings, csv, data, model, loss, training, output, threads)

/// JSON for the file at `path`. Throws c10::ValueError if a string is not UTF-8.
inline std::string to_text(const nlohmann::json& json, const std::string& path) {
  try {
    return json.dump();
  } catch (const nlohmann::json::exception& error) {
    TORCH_CHECK_VALUE(false, path, ": expected paths and names in UTF-8, got: ", error.what());
  }
}

}  // namespace flash::models
