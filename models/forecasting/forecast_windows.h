#pragma once
// From raw series to the windows that a model reads.

#include <flash_attention/models/forecaster.h>
#include <flash_attention/models/windows_batch.h>

#include <string>
#include <vector>

#include "forecasting/series_scaling.h"

namespace flash::models {

/// What the windows of a model look like.
struct WindowShape {
  int64_t horizon;
  int64_t input_size;
  bool together;  ///< whether all series are one window
  const SeriesColumns& columns;
};

struct ForecastWindows {
  WindowsBatch inputs;                 ///< float32; of all series
  std::vector<ColumnScaling> scaling;  ///< of each series; empty if none is scaled
};

/// "series 3 (name)", for messages.
std::string describe_series(const std::vector<RawSeries>& series, size_t index);

/// Checks and scales the series and takes the last window of each, padded on the left. Throws
/// c10::ValueError as Forecaster::predict does.
ForecastWindows make_windows(const std::vector<RawSeries>& series, const WindowShape& shape,
                             const SeriesScaling& scaling);

}  // namespace flash::models
