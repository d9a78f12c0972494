#pragma once
// Settings as JSON, for the files of models and of interrupted trainings. Reading throws
// nlohmann::json::exception where an entry is missing or of another type.

#include <nlohmann/json.hpp>

#include "train/settings.h"

namespace flash::models {

NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(PanelColumns, targets, time_column, id_column, futr_exog,
                                   hist_exog, stat_exog)
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
// Not the command, nor what it begins with.
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(Settings, csv, data, model, loss, training, output, threads)

}  // namespace flash::models
