#pragma once
// Forecasts as a picture.

#include <string>

#include "train/output/forecast_table.h"

namespace flash::models {

/// Throws c10::ValueError if this program was built without Cairo.
void check_pictures();

/// Writes a PNG with one panel for each of the first eight series: past or truth, forecast, and the
/// widest interval. Throws c10::ValueError if it cannot be written.
void draw_forecast(const std::string& path, const ForecastTable& table);

}  // namespace flash::models
