#include <ATen/CPUGeneratorImpl.h>
#include <flash_attention/models/checkpoint.h>
#include <torch/torch.h>

#include <algorithm>
#include <optional>

#include "forecasting/forecast_windows.h"
#include "forecasting/forecaster_parts.h"
#include "layers/informer/sampled_by.h"
#include "storage/model_file.h"

namespace flash::models {
namespace {

at::Tensor slice(const at::Tensor& tensor, int64_t begin, int64_t end) {
  return tensor.defined() ? tensor.slice(0, begin, end) : tensor;
}

/// A generator as where the file comes from seeds torch's, which decides the keys that Informer
/// selects. neuralforecast's data loader draws one number before the first batch.
at::Generator seeded_generator(uint64_t seed, bool after_loader) {
  at::Generator generator = at::detail::createCPUGenerator(seed);
  if (after_loader) at::empty({}, at::kLong).random_(generator);
  return generator;
}

}  // namespace

Forecaster::Forecaster(std::shared_ptr<const Parts> parts) : parts_(std::move(parts)) {}

const std::string& Forecaster::model_class() const { return parts_->model_class; }
int64_t Forecaster::horizon() const { return parts_->horizon; }
int64_t Forecaster::input_size() const { return parts_->input_size; }
int64_t Forecaster::n_series() const { return parts_->n_series; }
const std::vector<std::string>& Forecaster::output_names() const { return parts_->output_names; }
const SeriesColumns& Forecaster::columns() const { return parts_->columns; }
const std::vector<std::string>& Forecaster::series_names() const { return parts_->series_names; }

at::Tensor Forecaster::Parts::forecast(const WindowsBatch& inputs) const {
  std::optional<SampledBy> own_samples;
  if (model_class == "Informer") own_samples.emplace(seeded_generator(seed, drawn_after_loader));
  std::vector<at::Tensor> forecasts;
  const int64_t windows = inputs.insample_y.size(0);
  const int64_t step = std::min(batch_size, windows);
  for (int64_t begin = 0; begin < windows; begin += step) {
    const int64_t end = std::min(begin + step, windows);
    const auto [scaled, scaling] =
        norm->transform({.insample_y = slice(inputs.insample_y, begin, end),
                         .insample_mask = slice(inputs.insample_mask, begin, end),
                         .futr_exog = slice(inputs.futr_exog, begin, end),
                         .hist_exog = slice(inputs.hist_exog, begin, end),
                         .stat_exog = slice(inputs.stat_exog, begin, end)});
    at::Tensor output = model->forward(scaled);
    if (outputs_innermost) output = output.unflatten(2, {n_series, -1}).transpose(2, 3).flatten(2);
    forecasts.push_back(loss->forecast(output, scaling));
  }
  const at::Tensor all = forecasts.size() == 1 ? forecasts[0] : at::cat(forecasts);
  return together ? all[0].transpose(0, 1) : all.squeeze(2);
}

at::Tensor Forecaster::predict(const std::vector<RawSeries>& series) const {
  const Parts& parts = *parts_;
  TORCH_CHECK_VALUE(!series.empty(), "Forecaster: expected at least one series, got none");
  const auto count = static_cast<int64_t>(series.size());
  TORCH_CHECK_VALUE(!parts.together || count == parts.n_series, "Forecaster: expected the ",
                    parts.n_series, " series that the model forecasts together, got ", count);
  at::Tensor forecast;
  std::vector<ColumnScaling> scaling;
  {
    const c10::InferenceMode inference;
    const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::DispatchKey::AutocastCPU);
    ForecastWindows windows = make_windows(series,
                                           {.horizon = parts.horizon,
                                            .input_size = parts.input_size,
                                            .together = parts.together,
                                            .columns = parts.columns},
                                           parts.scaling);
    forecast = parts.forecast(windows.inputs);
    scaling = std::move(windows.scaling);
    if (!scaling.empty()) {
      std::vector<double> shift, spread;
      for (const ColumnScaling& one : scaling) {
        shift.push_back(one.shift[0]);
        spread.push_back(one.spread[0]);
      }
      const auto of_series = [&](const std::vector<double>& values) {
        return at::tensor(values, at::kDouble).view({count, 1, 1});
      };
      forecast = at::addcmul(of_series(shift), forecast.to(at::kDouble), of_series(spread));
    }
    if (forecast.size(2) == 1) forecast = forecast.squeeze(2);
  }
  const bool exact = std::any_of(series.begin(), series.end(), [](const RawSeries& one) {
    return one.y.scalar_type() == at::kDouble;
  });
  // An ordinary tensor, which autograd may record.
  return at::empty(forecast.sizes(), exact ? at::kDouble : at::kFloat).copy_(forecast);
}

at::Tensor Forecaster::predict(const at::Tensor& y) const {
  return predict(std::vector<RawSeries>{{.y = y}});
}

SafetensorsFile Forecaster::contents() const {
  SafetensorsFile file = model_file(*parts_->model, parts_->file);
  for (auto& [name, tensor] : file.tensors) tensor = tensor.clone();
  return file;
}

void Forecaster::save(const std::string& path) const {
  save_model(path, *parts_->model, parts_->file);
}

}  // namespace flash::models
