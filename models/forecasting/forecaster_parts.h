#pragma once
// What a Forecaster consists of.

#include <flash_attention/models/forecast_model.h>
#include <flash_attention/models/forecaster.h>
#include <flash_attention/models/losses.h>
#include <flash_attention/models/temporal_norm.h>
#include <flash_attention/models/windows_batch.h>

#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "forecasting/series_scaling.h"

namespace flash::models {

struct Forecaster::Parts {
  std::shared_ptr<ForecastModel> model;
  std::shared_ptr<Loss> loss;
  TemporalNorm norm{nullptr};
  std::string model_class;
  int64_t horizon = 0;
  int64_t input_size = 0;
  int64_t n_series = 1;
  bool together = false;  ///< whether the model sees all series at once
  SeriesColumns columns;
  SeriesScaling scaling;
  /// Windows per forward, as many as where the file comes from: Informer's draws depend on it.
  int64_t batch_size = 32;
  uint64_t seed = 0;
  bool drawn_after_loader = false;  ///< see forecaster.cpp
  /// Whether outputs of several series are in the order in which neuralforecast's MQLoss reads
  /// them: output m of series n at n * M + m instead of m * N + n.
  bool outputs_innermost = false;
  std::vector<std::string> output_names;
  std::vector<std::string> series_names;
  SafetensorsFile file;  ///< metadata, and the tensors that are not the network's

  /// Windows of all series -> [series, h, outputs], before the scaling of whole series is undone.
  at::Tensor forecast(const WindowsBatch& inputs) const;

  // In forecaster_file.cpp. They throw nlohmann::json::exception where an entry is malformed.
  void read_options();
  void read_flash_train(const nlohmann::json& description);
  void read_neuralforecast(const nlohmann::json& hyper_parameters,
                           const nlohmann::json& configuration);
};

}  // namespace flash::models
