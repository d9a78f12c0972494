// save_forecaster and load_forecaster.

#include <flash_attention/models/checkpoint.h>
#include <torch/torch.h>

#include <cmath>

#include "message_text.h"
#include "neuralforecast_names.h"
#include "storage/json_text.h"
#include "train/command/settings_json.h"
#include "train/command/stored_settings.h"
#include "train/output/table_forecaster.h"

namespace flash::models {
namespace {

using Json = nlohmann::json;

constexpr const char* kMetadataKey = "flash_train";

std::vector<double> to_vector(const at::Tensor& tensor) {
  const at::Tensor numbers = tensor.to(at::kDouble).contiguous();
  return {numbers.const_data_ptr<double>(), numbers.const_data_ptr<double>() + numbers.numel()};
}

at::Tensor to_tensor(const Json& numbers) {
  return torch::tensor(numbers.get<std::vector<double>>(), at::kDouble);
}

Json to_json(const ColumnScaler& scaler) {
  return {{"mean", to_vector(scaler.mean)}, {"deviation", to_vector(scaler.deviation)}};
}

ColumnScaler to_scaler(const std::string& path, const std::string& name, const Json& json,
                       size_t columns) {
  ColumnScaler scaler{.mean = to_tensor(json.at("mean")),
                      .deviation = to_tensor(json.at("deviation"))};
  const auto expected = static_cast<int64_t>(columns);
  TORCH_CHECK_VALUE(scaler.mean.numel() == expected && scaler.deviation.numel() == expected, path,
                    ": expected a mean and a deviation for each of ", columns, " columns of ", name,
                    ", got ", scaler.mean.numel(), " and ", scaler.deviation.numel());
  return scaler;
}

/// The quantile in a column of a forecast; NaN for a mean or a parameter.
double quantile_of(const std::string& name) {
  if (name == "-median") return 0.5;
  const double sign = name.starts_with("-lo-")   ? -1.0
                      : name.starts_with("-hi-") ? 1.0
                                                 : std::nan("");
  return std::isnan(sign) ? sign : 0.5 + sign * std::stod(name.substr(4)) / 200.0;
}

/// The loss as neuralforecast stores it, which needs it to interpret the outputs.
SafetensorsFile neuralforecast_parts(const TableForecaster& forecaster) {
  const Loss& loss = *forecaster.loss;
  Json arguments = {{"horizon_weight", nullptr}};
  SafetensorsFile parts;
  if (loss.name() == "MQLoss" || loss.is_distribution_output()) {
    arguments["level"] = loss.options.level();
    arguments["quantiles"] =
        loss.options.quantiles().empty() ? Json(nullptr) : Json(loss.options.quantiles());
    std::vector<double> quantiles;
    for (const std::string& name : loss.output_names()) {
      if (const double q = quantile_of(name); !std::isnan(q)) quantiles.push_back(q);
    }
    parts.tensors["loss.quantiles"] = torch::tensor(quantiles, torch::kFloat);
    parts.metadata["shared"] = Json{{"loss.quantiles", {"valid_loss.quantiles"}}}.dump();
  }
  if (loss.is_distribution_output()) arguments["distribution"] = loss.options.distribution();
  if (loss.name() == "QuantileLoss") arguments["q"] = loss.options.q();
  if (loss.name() == "HuberLoss") arguments["delta"] = loss.options.delta();
  const Json tagged = {{"__nf__", "loss"}, {"cls", loss.name()}, {"args", arguments}};
  parts.metadata["hyper_parameters"] =
      Json{{"loss", tagged}, {"scaler_type", forecaster.loss_settings.scaler_type}}.dump();
  return parts;
}

Json read_description(const std::string& path, const Metadata& metadata) {
  const auto text = metadata.find(kMetadataKey);
  TORCH_CHECK_VALUE(text != metadata.end(), path,
                    ": expected a model written by flash_train, got a file without ", kMetadataKey,
                    " in its metadata");
  return parse_json_object(
      text->second, path + ": expected " + kMetadataKey + " in its metadata as a JSON object");
}

void check_same_model(const ModelSettings& trained, const std::string& attention) {
  TORCH_CHECK_VALUE((trained.attention == "native") == (attention == "native"),
                    "expected --attention ", trained.attention, ", with which this ",
                    trained.model_class, " was trained, got ", attention,
                    ", which makes it a different model; train one with that");
}

}  // namespace

void save_forecaster(const std::string& path, const TableForecaster& forecaster) {
  Json scalers = Json::object();
  for (const auto& [name, scaler] : forecaster.scalers) scalers[name] = to_json(scaler);
  const Json description = {{"data", forecaster.data},
                            {"model", forecaster.settings},
                            {"loss", forecaster.loss_settings},
                            {"scalers", scalers},
                            {"batch_size", forecaster.batch_size},
                            {"stat_scaler", to_json(forecaster.stat_scaler)}};
  SafetensorsFile keep = neuralforecast_parts(forecaster);
  keep.metadata[kMetadataKey] = to_text(description, path);
  for (const auto& [name, tensor] : state_dict(*forecaster.norm)) {
    keep.tensors.emplace(kScalerPrefix + name, tensor);
  }
  save_model(path, *forecaster.model, keep);
}

TableForecaster load_forecaster(const std::string& path, const std::string& attention,
                                int64_t block_size) {
  const SafetensorsFile file = read_safetensors(path);
  try {
    const Json description = read_description(path, file.metadata);
    ModelSettings settings = read_settings<ModelSettings>(description.at("model"), path);
    parse_json_object(settings.options, path + ": expected the model's options as a JSON object");
    const DataSettings data = read_settings<DataSettings>(description.at("data"), path);
    if (!attention.empty()) {
      check_attention(settings.model_class, attention);
      check_same_model(settings, attention);
      settings.attention = attention;
    }
    settings.block_size = block_size;
    settings.gradient_checkpointing = false;
    TableForecaster forecaster = forecaster_without_model(
        data, settings, read_settings<LossSettings>(description.at("loss"), path));
    forecaster.model =
        with_attention(load_model(file, {.use_flash_attention = settings.attention == "flash",
                                         .flash_block_size = settings.block_size}),
                       settings.attention);
    description.at("batch_size").get_to(forecaster.batch_size);
    check_batch_size(forecaster.batch_size, path);
    const size_t columns = 1 + data.columns.futr_exog.size() + data.columns.hist_exog.size();
    for (const auto& [name, scaler] : description.at("scalers").items()) {
      forecaster.scalers.emplace(name, to_scaler(path, name, scaler, columns));
    }
    forecaster.stat_scaler = to_scaler(path, "the static part", description.at("stat_scaler"),
                                       data.columns.stat_exog.size());
    TensorMap norm;
    for (const auto& [name, tensor] : file.tensors) {
      if (!name.starts_with(kScalerPrefix)) continue;
      norm.emplace(name.substr(std::string(kScalerPrefix).size()), tensor);
    }
    load_state_dict(*forecaster.norm.ptr(), norm);
    forecaster.train(false);
    return forecaster;
  } catch (const Json::exception& error) {
    TORCH_CHECK_VALUE(false, path, ": expected ", kMetadataKey,
                      " metadata as flash_train writes it, got: ", excerpt(error.what()));
  }
}

}  // namespace flash::models
