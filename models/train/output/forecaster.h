#pragma once
// A model together with all that leads from a table to its forecasts.

#include <flash_attention/models/forecast_model.h>
#include <flash_attention/models/losses.h>
#include <flash_attention/models/temporal_norm.h>
#include <torch/nn/module.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "data/scaler.h"
#include "data/window_dataset.h"
#include "model_size.h"
#include "train/command/settings.h"

namespace flash::models {

struct Forecaster {
  std::shared_ptr<ForecastModel> model;
  std::shared_ptr<Loss> loss;
  TemporalNorm norm{nullptr};  ///< scales each window
  DataSettings data;
  ModelSettings settings;  ///< options too
  LossSettings loss_settings;
  /// Of each series by its name, and of the static columns: float64 [1 + F + X] and [S].
  std::map<std::string, ColumnScaler> scalers;
  ColumnScaler stat_scaler;
  /// Windows at a time in a test. Informer draws random numbers for each batch, so that another
  /// number gives another test error.
  int64_t batch_size = 64;

  /// The scalar to minimise.
  at::Tensor training_loss(const WindowBatch& batch) const;

  /// Loss and forecasts [B, h, N, columns], both on the scale of the batch, without gradients.
  struct Judged {
    double loss;
    at::Tensor forecast;
  };
  Judged judge(const WindowBatch& batch) const;
  at::Tensor forecast(const WindowBatch& batch) const;

  /// Into training or evaluation mode.
  void train(bool on = true) const;
  /// Names and tensors of the model, and under "scaler." of the norm (only "revin" has any).
  std::map<std::string, at::Tensor> state() const;
  /// Copies what state() gave; names and shapes must fit.
  void load_state(const std::map<std::string, at::Tensor>& state) const;
  /// Those of state() that are trained.
  std::vector<std::pair<std::string, at::Tensor>> parameters() const;
  int64_t parameter_count() const;
  bool together() const;  ///< whether the model sees all series at once
};

/// All but model and scalers. Throws c10::ValueError where an option is out of range.
Forecaster forecaster_without_model(const DataSettings& data, const ModelSettings& settings,
                                    const LossSettings& loss);

/// A new one with random weights, without scalers. `series` matters to iTransformer alone. Throws
/// c10::ValueError where an option is out of range or the model beyond `limit`.
Forecaster make_forecaster(const DataSettings& data, const ModelSettings& settings,
                           const LossSettings& loss, int64_t series,
                           const SizeLimit& limit = limit_of_machine());

/// "native" for Autoformer and FEDformer, "flash" for the others.
std::string default_attention(const std::string& model_class);

/// Throws c10::ValueError naming the choices that the class has.
void check_attention(const std::string& model_class, const std::string& attention);

/// `model` with its attention as asked, which for "standard" in Autoformer and FEDformer is a model
/// made anew with the same weights.
std::shared_ptr<ForecastModel> with_attention(std::shared_ptr<ForecastModel> model,
                                              const std::string& attention);

/// One safetensors file with weights, hyperparameters, loss, scalers and data settings, which
/// neuralforecast reads too.
void save_forecaster(const std::string& path, const Forecaster& forecaster);

/// `attention` as for check_attention, or empty for that of the training. Throws c10::ValueError if
/// the file is broken or was not written by save_forecaster, and where another attention would be
/// another model.
Forecaster load_forecaster(const std::string& path, const std::string& attention,
                           int64_t block_size);

}  // namespace flash::models
