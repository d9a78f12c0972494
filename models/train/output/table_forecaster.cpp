#include "train/output/table_forecaster.h"

#include <flash_attention/models/autoformer.h>
#include <flash_attention/models/fedformer.h>
#include <flash_attention/models/safetensors.h>
#include <torch/torch.h>

#include <nlohmann/json.hpp>

#include "model_factory.h"
#include "neuralforecast_names.h"
#include "storage/json_text.h"

namespace flash::models {
namespace {

bool replaces_attention(const std::string& model_class) {
  return model_class == "Autoformer" || model_class == "FEDformer";
}

/// Without the identity scaler, which would only cost copies.
std::pair<WindowsBatch, WindowScaling> scale(const TemporalNorm& norm, const WindowBatch& batch) {
  if (norm->options.scaler_type() == "identity") return {batch.inputs, WindowScaling{}};
  return norm->transform(batch.inputs);
}

template <class Impl>
std::shared_ptr<ForecastModel> remade(ForecastModel& model, const std::string& attention) {
  auto* given = dynamic_cast<Impl*>(&model);
  if (given == nullptr) return nullptr;
  auto options = given->options;
  auto made = std::make_shared<Impl>(options.attention(attention).use_flash_attention(false));
  load_state_dict(*made, state_dict(*given));
  made->train(given->is_training());
  return made;
}

template <class Take>
void each_parameter(const TableForecaster& forecaster, const Take& take) {
  for (const auto& item : forecaster.model->module().named_parameters()) {
    if (item->requires_grad()) take(item.key(), *item);
  }
  for (const auto& item : forecaster.norm->named_parameters()) {
    if (item->requires_grad()) take(kScalerPrefix + item.key(), *item);
  }
}

}  // namespace

at::Tensor TableForecaster::training_loss(const WindowBatch& batch) const {
  const auto [inputs, scaling] = scale(norm, batch);
  return loss->training_loss(model->forward(inputs), batch.future, scaling);
}

TableForecaster::Judged TableForecaster::judge(const WindowBatch& batch) const {
  torch::NoGradGuard no_grad;
  const auto [inputs, scaling] = scale(norm, batch);
  const at::Tensor output = model->forward(inputs);
  return {.loss = loss->validation_loss(output, batch.future, scaling).item<double>(),
          .forecast = loss->forecast(output, scaling)};
}

at::Tensor TableForecaster::forecast(const WindowBatch& batch) const {
  torch::NoGradGuard no_grad;
  const auto [inputs, scaling] = scale(norm, batch);
  return loss->forecast(model->forward(inputs), scaling);
}

void TableForecaster::train(bool on) const {
  model->module().train(on);
  norm.ptr()->train(on);
}

std::map<std::string, at::Tensor> TableForecaster::state() const {
  TensorMap tensors = state_dict(model->module());
  for (const auto& [name, tensor] : state_dict(*norm))
    tensors.emplace(kScalerPrefix + name, tensor);
  return tensors;
}

void TableForecaster::load_state(const std::map<std::string, at::Tensor>& state) const {
  TensorMap of_model, of_norm;
  for (const auto& [name, tensor] : state) {
    if (name.starts_with(kScalerPrefix)) {
      of_norm.emplace(name.substr(std::string(kScalerPrefix).size()), tensor);
    } else {
      of_model.emplace(name, tensor);
    }
  }
  load_state_dict(model->module(), of_model);
  load_state_dict(*norm.ptr(), of_norm);
}

std::vector<std::pair<std::string, at::Tensor>> TableForecaster::parameters() const {
  std::vector<std::pair<std::string, at::Tensor>> list;
  each_parameter(*this, [&](const std::string& name, const at::Tensor& parameter) {
    list.emplace_back(name, parameter);
  });
  return list;
}

int64_t TableForecaster::parameter_count() const {
  int64_t count = 0;
  each_parameter(*this, [&](const std::string&, const at::Tensor& p) { count += p.numel(); });
  return count;
}

bool TableForecaster::together() const { return settings.model_class == "iTransformer"; }

TableForecaster forecaster_without_model(const DataSettings& data, const ModelSettings& settings,
                                         const LossSettings& loss) {
  check_attention(settings.model_class, settings.attention);
  TableForecaster forecaster;
  forecaster.data = data;
  forecaster.settings = settings;
  forecaster.loss_settings = loss;
  forecaster.loss = make_loss(
      loss.name,
      LossOptions().level(loss.level).quantiles(loss.quantiles).q(loss.q).delta(loss.delta));
  forecaster.norm =
      TemporalNorm(TemporalNormOptions(loss.scaler_type)
                       .num_features(1 + static_cast<int64_t>(data.columns.futr_exog.size() +
                                                              data.columns.hist_exog.size())));
  return forecaster;
}

TableForecaster make_forecaster(const DataSettings& data, const ModelSettings& settings,
                                const LossSettings& loss, int64_t series, const SizeLimit& limit) {
  TableForecaster forecaster = forecaster_without_model(data, settings, loss);
  nlohmann::json options = parse_json_object(
      settings.options, settings.model_class + ": expected the options as a JSON object");
  options["h"] = settings.horizon;
  options["input_size"] = settings.input_size;
  const auto name_columns = [&](const char* key, const std::vector<std::string>& names) {
    if (!names.empty()) options[key] = names;
  };
  name_columns("futr_exog_list", data.columns.futr_exog);
  name_columns("hist_exog_list", data.columns.hist_exog);
  name_columns("stat_exog_list", data.columns.stat_exog);
  if (settings.model_class == "iTransformer") options["n_series"] = series;
  forecaster.model = with_attention(
      make_model(
          settings.model_class, options.dump(),
          FactorySettings{.outputsize_multiplier = forecaster.loss->outputsize_multiplier(),
                          .config = {.use_flash_attention = settings.attention == "flash",
                                     .flash_block_size = settings.block_size,
                                     .gradient_checkpointing = settings.gradient_checkpointing},
                          .refuse_unknown = true,
                          .limit = limit}),
      settings.attention);
  return forecaster;
}

std::string default_attention(const std::string& model_class) {
  return replaces_attention(model_class) ? "native" : "flash";
}

void check_attention(const std::string& model_class, const std::string& attention) {
  const bool known = attention == "flash" || attention == "standard";
  TORCH_CHECK_VALUE(known || (attention == "native" && replaces_attention(model_class)),
                    "expected --attention of ", model_class, " to be flash",
                    replaces_attention(model_class) ? ", standard or native" : " or standard",
                    ", got ", attention);
}

std::shared_ptr<ForecastModel> with_attention(std::shared_ptr<ForecastModel> model,
                                              const std::string& attention) {
  if (attention != "standard" || !replaces_attention(model->model_class())) return model;
  auto made = remade<AutoformerImpl>(*model, attention);
  return made ? made : remade<FEDformerImpl>(*model, attention);
}

}  // namespace flash::models
