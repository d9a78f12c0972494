#pragma once
// Forecasts of raw series by a model from a file, in the units of the series.
//
//     const auto forecaster = flash::models::Forecaster::load("model.safetensors");
//     at::Tensor forecast = forecaster.predict(y);        // y [rows] -> [1, h] or [1, h, outputs]
//     forecast = forecaster.predict({{.y = a}, {.y = b}});  // of any lengths -> [2, h, ...]
//
// A file holds the network, its loss and its window scaler; `Forecaster` applies all of them. Where
// a file names neither, as that of a network alone, they are neuralforecast's defaults: MAE, and
// "robust" for TFT, "identity" for the other models.
// Scaling of whole series, before the windows are taken, is what the file says:
//     flash_train                     mean and deviation of the training rows, by the series' name
//     NeuralForecast.save             `local_scaler_type` of its folder, fitted to the given series
//     neither                         none
// The window is the last input_size rows. Shorter series are padded as in neuralforecast: zeros on
// the left, after the scaling of whole series, which the window scaler leaves out.

#include <ATen/core/Tensor.h>
#include <flash_attention/export.h>
#include <flash_attention/models/safetensors.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace flash::models {

/// The columns of the tables that a model was trained on.
struct SeriesColumns {
  std::string id = "unique_id";  ///< empty: each target column is a series
  std::string time = "ds";       ///< empty: rows are in order of time
  std::vector<std::string> targets = {"y"};
  std::vector<std::string> futr_exog = {};  ///< known for past and future
  std::vector<std::string> hist_exog = {};  ///< known for the past
  std::vector<std::string> stat_exog = {};  ///< one value per series
};

/// One series as measured: rows in order of time, of any floating-point or integer dtype, finite.
/// Exogenous tensors are those of the model's columns, in their order; undefined if it has none.
struct RawSeries {
  at::Tensor y;               ///< [rows], at least one row
  at::Tensor futr_exog = {};  ///< [rows + h, F]: of the past and of the h steps to forecast
  at::Tensor hist_exog = {};  ///< [rows, X]
  at::Tensor stat_exog = {};  ///< [S]
  /// One of series_names(), if there are several; otherwise only for error messages.
  std::string name = {};
};

class FLASH_API Forecaster {
 public:
  /// Loads a file of flash_train, save_model, neuralforecast 3.3's `model.save`, or
  /// Forecaster::save; or a folder of `NeuralForecast.save`, of which `model` names the file
  /// ("PatchTST_0") if it holds several. A file in such a folder takes its configuration.json, too,
  /// unless it comes from flash_train or Forecaster::save. Attention is computed as the model was
  /// trained, by flash::attention where that gives the same results. Torch's random state and its
  /// default dtype neither change nor matter.
  ///
  /// Throws c10::ValueError as load_model does, if the folder cannot be read, and if the file's
  /// loss or scaler is not supported.
  static Forecaster load(const std::string& path, const std::string& model = "");
  /// The same from a file that has been read.
  explicit Forecaster(const SafetensorsFile& file);

  /// neuralforecast's name of the network's class: "PatchTST", ...
  const std::string& model_class() const;
  int64_t horizon() const;     ///< h, steps to forecast
  int64_t input_size() const;  ///< rows that the model looks back
  /// Series that the model forecasts together, all of which it must be given; 1 except for
  /// iTransformer.
  int64_t n_series() const;
  /// "forecast", or with intervals "forecast-median", "forecast-lo-90", ...; for a distribution the
  /// first is the mean, "forecast".
  const std::vector<std::string>& output_names() const;
  const SeriesColumns& columns() const;
  /// The series whose scalers the file holds; empty if any series is accepted.
  const std::vector<std::string>& series_names() const;

  /// Forecasts [series, h], or [series, h, outputs] if there are several outputs: float64 if a `y`
  /// is, otherwise float32. The network computes in float32, under autocast too. Repeated calls
  /// give the same result, Informer's random selection of keys included, on any number of threads
  /// at once; torch's random state stays as it is. Records nothing for autograd.
  ///
  /// Throws c10::ValueError naming the series and what was expected: values that are not finite or
  /// overflow float32 once scaled, tensors that are missing, unexpected or of the wrong shape, an
  /// unknown name, or for iTransformer another number of series.
  at::Tensor predict(const std::vector<RawSeries>& series) const;
  /// The same for one series without exogenous columns, y [rows].
  at::Tensor predict(const at::Tensor& y) const;

  /// Writes one file with all of the above, which `load`, load_model and neuralforecast's `load`
  /// read. Throws c10::ValueError as save_model does.
  void save(const std::string& path) const;
  /// What `save` writes. The constructor makes a copy of this forecaster from it.
  SafetensorsFile contents() const;

 private:
  struct Parts;
  explicit Forecaster(std::shared_ptr<const Parts> parts);

  std::shared_ptr<const Parts> parts_;
};

}  // namespace flash::models
