#pragma once
// The contents of a model file, before they are written.

#include <flash_attention/models/forecast_model.h>
#include <flash_attention/models/safetensors.h>

namespace flash::models {

/// What save_model of checkpoint.h writes, with its arguments and errors. Tensors share memory with
/// the model and with `keep`.
SafetensorsFile model_file(ForecastModel& model, const SafetensorsFile& keep);

}  // namespace flash::models
