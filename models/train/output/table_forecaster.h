#pragma once
// A model with everything else that turns a table into forecasts: scalers and loss.

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

struct TableForecaster {
  std::shared_ptr<ForecastModel> model;
  std::shared_ptr<Loss> loss;
  TemporalNorm norm{nullptr};  ///< the window scaler
  DataSettings data;
  ModelSettings settings;  ///< including the model's options
  LossSettings loss_settings;
  /// Scalers of each series, by name, and of the static columns: float64 [1 + F + X] and [S].
  std::map<std::string, ColumnScaler> scalers;
  ColumnScaler stat_scaler;
  /// Batch size of a test. Informer draws random numbers per batch, so its test error depends on
  /// it.
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

  /// Sets training or evaluation mode.
  void train(bool on = true) const;
  /// The tensors of the model, and under "scaler." those of the norm (only "revin" has any).
  std::map<std::string, at::Tensor> state() const;
  /// Restores a result of state(); names and shapes must match.
  void load_state(const std::map<std::string, at::Tensor>& state) const;
  /// The tensors of state() that are trained.
  std::vector<std::pair<std::string, at::Tensor>> parameters() const;
  int64_t parameter_count() const;
  bool together() const;  ///< whether the model sees all series at once
};

/// A forecaster without model and scalers. Throws c10::ValueError if an option is out of range.
TableForecaster forecaster_without_model(const DataSettings& data, const ModelSettings& settings,
                                         const LossSettings& loss);

/// A forecaster with random weights and without scalers. Only iTransformer depends on `series`.
/// Throws c10::ValueError if an option is out of range or the model exceeds `limit`.
TableForecaster make_forecaster(const DataSettings& data, const ModelSettings& settings,
                                const LossSettings& loss, int64_t series,
                                const SizeLimit& limit = limit_of_machine());

/// "native" for Autoformer and FEDformer, "flash" for the others.
std::string default_attention(const std::string& model_class);

/// Throws c10::ValueError listing the choices of the class, if it does not have this one.
void check_attention(const std::string& model_class, const std::string& attention);

/// `model` with the given attention. For "standard" in Autoformer and FEDformer this is a new model
/// with the same weights.
std::shared_ptr<ForecastModel> with_attention(std::shared_ptr<ForecastModel> model,
                                              const std::string& attention);

/// Writes weights, hyperparameters, loss, scalers and data settings to one safetensors file, which
/// neuralforecast can read too.
void save_forecaster(const std::string& path, const TableForecaster& forecaster);

/// `attention` as for check_attention, or empty for that of the training. Throws c10::ValueError if
/// the file is broken or was not written by save_forecaster, or if `attention` would make it a
/// different model.
TableForecaster load_forecaster(const std::string& path, const std::string& attention,
                                int64_t block_size);

}  // namespace flash::models
