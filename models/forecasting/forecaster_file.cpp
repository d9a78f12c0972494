// Forecaster::load: files of flash_train and neuralforecast, and its folders.

#include <flash_attention/models/checkpoint.h>
#include <torch/torch.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "forecasting/forecaster_parts.h"
#include "forecasting/neuralforecast_loss.h"
#include "message_text.h"
#include "neuralforecast_names.h"
#include "rng_state_guard.h"
#include "storage/json_options.h"
#include "storage/json_text.h"

namespace flash::models {
namespace {

using Json = nlohmann::json;

constexpr const char* kFlashTrain = "flash_train";
/// What a folder of NeuralForecast.save knows beyond its model file, under neuralforecast's names.
constexpr const char* kConfiguration = "neuralforecast";
constexpr const char* kConfigurationFile = "configuration.json";
constexpr const char* kConfigurationKeys[] = {"local_scaler_type", "local_static_scaler_type",
                                              "id_col", "time_col", "target_col"};

/// The JSON object under `key`, empty if there is none.
Json stored_object(const Metadata& metadata, const char* key) {
  const auto text = metadata.find(key);
  if (text == metadata.end()) return Json::object();
  return parse_json_object(text->second,
                           std::string("Forecaster: expected ") + key + " as a JSON object");
}

/// An entry that may be missing or null.
template <class Value>
Value value_or(const Json& json, const char* key, Value otherwise) {
  const auto found = json.find(key);
  return found == json.end() || found->is_null() ? std::move(otherwise) : found->get<Value>();
}

bool has_softmax_attention(const std::string& model_class) {
  return model_class != "Autoformer" && model_class != "FEDformer";
}

/// "flash" and "standard" give Autoformer and FEDformer the same exact attention.
ModelConfig config_of(const std::string& model_class, const Json& flash_train) {
  const bool replaced = !flash_train.empty() && flash_train.at("model").at("attention") != "native";
  return {.use_flash_attention = has_softmax_attention(model_class) || replaced};
}

ColumnScaling to_scaling(const std::string& name, const Json& json, size_t columns) {
  ColumnScaling scaling{.shift = json.at("mean").get<std::vector<double>>(),
                        .spread = json.at("deviation").get<std::vector<double>>()};
  TORCH_CHECK_VALUE(scaling.shift.size() == columns && scaling.spread.size() == columns,
                    "Forecaster: expected a mean and a deviation for each of ", columns,
                    " columns of ", excerpt(name), ", got ", scaling.shift.size(), " and ",
                    scaling.spread.size());
  return scaling;
}

std::shared_ptr<Loss> flash_train_loss(const Json& settings) {
  return make_loss(settings.at("name").get<std::string>(),
                   LossOptions()
                       .level(settings.at("level").get<std::vector<double>>())
                       .quantiles(settings.at("quantiles").get<std::vector<double>>())
                       .q(settings.at("q").get<double>())
                       .delta(settings.at("delta").get<double>()));
}

bool has_configuration(const std::filesystem::path& folder) {
  std::error_code ignored;
  return std::filesystem::is_regular_file(folder / kConfigurationFile, ignored);
}

/// What forecasts need of the configuration.json in a folder of NeuralForecast.save, as JSON.
std::string read_configuration(const std::filesystem::path& folder) {
  const std::filesystem::path path = folder / kConfigurationFile;
  TORCH_CHECK_VALUE(
      has_configuration(folder), "Forecaster: expected ", path.string(),
      ", as NeuralForecast.save of neuralforecast 3.3 writes it, got a folder without "
      "it; convert an older one with python -m neuralforecast.migrate");
  std::ifstream file(path, std::ios::binary);
  TORCH_CHECK_VALUE(file, "Forecaster: expected a file that can be read, got ", path.string(), ": ",
                    std::strerror(errno));
  const std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  const Json document = parse_json_object(text, path.string() + ": expected a JSON object");
  const Json configuration = document.value("configuration", Json::object());
  Json kept = Json::object();
  for (const char* key : kConfigurationKeys) {
    if (configuration.contains(key)) kept[key] = configuration.at(key);
  }
  return kept.dump();
}

/// The model file in a folder of NeuralForecast.save.
std::string find_model(const std::string& folder, const std::string& model) {
  std::vector<std::string> names;
  std::error_code error;
  std::filesystem::directory_iterator entry(folder, error);
  for (; entry != std::filesystem::directory_iterator(); entry.increment(error)) {
    const std::string name = entry->path().stem().string();
    if (entry->path().extension() != ".safetensors") continue;
    if (name != "dataset" && name != "configuration") names.push_back(name);
  }
  TORCH_CHECK_VALUE(!error, "Forecaster: expected a folder that can be read, got ", folder, ": ",
                    error.message());
  std::sort(names.begin(), names.end());
  std::string list;
  for (const std::string& name : names) list += (list.empty() ? "" : ", ") + excerpt(name);
  if (model.empty()) {
    TORCH_CHECK_VALUE(names.size() == 1, "Forecaster: expected one model in ", folder,
                      ", or the name of one of them as `model`, got ",
                      names.empty() ? std::string("none") : list);
    return names[0];
  }
  TORCH_CHECK_VALUE(std::find(names.begin(), names.end(), model) != names.end(),
                    "Forecaster: expected `model` to be one of those in ", folder, " (", list,
                    "), got ", excerpt(model));
  return model;
}

SafetensorsFile read_folder(const std::string& folder, const std::string& model) {
  std::string configuration = read_configuration(folder);
  SafetensorsFile file = read_safetensors(
      (std::filesystem::path(folder) / (find_model(folder, model) + ".safetensors")).string());
  file.metadata[kConfiguration] = std::move(configuration);
  return file;
}

/// A file that NeuralForecast.save has written belongs to the configuration beside it. One of
/// flash_train or Forecaster::save says itself how series are scaled.
SafetensorsFile read_file(const std::string& path) {
  SafetensorsFile file = read_safetensors(path);
  const std::filesystem::path folder = std::filesystem::path(path).parent_path();
  const bool complete =
      file.metadata.contains(kFlashTrain) || file.metadata.contains(kConfiguration);
  if (!complete && has_configuration(folder)) {
    file.metadata[kConfiguration] = read_configuration(folder);
  }
  return file;
}

/// float32 with the values of `weights` where torch's default dtype, in which modules are made, is
/// another.
void to_float32(torch::nn::Module& module, const TensorMap& weights) {
  bool changed = false;
  const auto convert = [&](at::Tensor tensor) {
    if (!tensor.is_floating_point() || tensor.scalar_type() == at::kFloat) return;
    tensor.set_data(tensor.detach().to(at::kFloat));
    changed = true;
  };
  for (const at::Tensor& parameter : module.parameters()) convert(parameter);
  for (const at::Tensor& buffer : module.buffers()) convert(buffer);
  if (changed) load_state_dict(module, weights);
}

std::vector<std::string> prefixed_names(const Loss& loss) {
  std::vector<std::string> names;
  for (const std::string& suffix : loss.output_names()) names.push_back("forecast" + suffix);
  return names;
}

}  // namespace

void Forecaster::Parts::read_options() {
  JsonOptionWriter writer;
  model->visit_options(writer);
  const Json& options = writer.options;
  model_class = model->model_class();
  horizon = options.at("h").get<int64_t>();
  input_size = options.at("input_size").get<int64_t>();
  together = model_class == "iTransformer";
  if (together) n_series = options.at("n_series").get<int64_t>();
  const auto names = [&](const char* key) {
    return value_or<std::vector<std::string>>(options, key, {});
  };
  columns.futr_exog = names("futr_exog_list");
  columns.hist_exog = names("hist_exog_list");
  columns.stat_exog = names("stat_exog_list");
}

void Forecaster::Parts::read_flash_train(const Json& description) {
  const Json& data = description.at("data");
  const Json& given = data.at("columns");
  columns.targets = given.at("targets").get<std::vector<std::string>>();
  columns.id = given.at("id_column").get<std::string>();
  columns.time = given.at("time_column").get<std::string>();
  batch_size = description.at("batch_size").get<int64_t>();
  loss = flash_train_loss(description.at("loss"));
  if (data.at("table_scaler") == "none") return;
  const size_t scaled = 1 + columns.futr_exog.size() + columns.hist_exog.size();
  for (const auto& [name, json] : description.at("scalers").items()) {
    scaling.by_name.emplace(name, to_scaling(name, json, scaled));
    series_names.push_back(name);
  }
  scaling.stat =
      to_scaling("the static part", description.at("stat_scaler"), columns.stat_exog.size());
}

void Forecaster::Parts::read_neuralforecast(const Json& hyper_parameters,
                                            const Json& configuration) {
  loss = neuralforecast_loss(hyper_parameters);
  outputs_innermost = loss->name() == "MQLoss" && n_series > 1;
  seed = value_or<uint64_t>(hyper_parameters, "random_seed", 1);
  drawn_after_loader = true;
  batch_size = value_or<int64_t>(hyper_parameters, "valid_batch_size",
                                 value_or<int64_t>(hyper_parameters, "batch_size", 32));
  columns.id = value_or(configuration, "id_col", columns.id);
  columns.time = value_or(configuration, "time_col", columns.time);
  columns.targets = {value_or(configuration, "target_col", columns.targets[0])};
  scaling.local_type = value_or<std::string>(configuration, "local_scaler_type", "");
  scaling.local_static_type = value_or<std::string>(configuration, "local_static_scaler_type", "");
  check_local_scaler("local_scaler_type", scaling.local_type);
  check_local_scaler("local_static_scaler_type", scaling.local_static_type);
}

Forecaster::Forecaster(const SafetensorsFile& file) {
  const RngStateGuard unmoved;  // the model draws initial weights
  auto parts = std::make_shared<Parts>();
  try {
    const Json flash_train = stored_object(file.metadata, kFlashTrain);
    const Json hyper_parameters = stored_object(file.metadata, kHyperParameters);
    const auto model_class = file.metadata.find(kModelClass);
    parts->model = load_model(
        file,
        config_of(model_class == file.metadata.end() ? "" : model_class->second, flash_train));
    to_float32(parts->model->module(), file.tensors);
    parts->read_options();
    if (flash_train.empty()) {
      parts->read_neuralforecast(hyper_parameters, stored_object(file.metadata, kConfiguration));
    } else {
      parts->read_flash_train(flash_train);
    }
    parts->norm =
        TemporalNorm(TemporalNormOptions(value_or(hyper_parameters, "scaler_type",
                                                  default_scaler_type(parts->model_class)))
                         .num_features(1 + static_cast<int64_t>(parts->columns.futr_exog.size() +
                                                                parts->columns.hist_exog.size())));
  } catch (const Json::exception& error) {
    TORCH_CHECK_VALUE(false,
                      "Forecaster: expected metadata as flash_train or neuralforecast writes it, "
                      "got: ",
                      excerpt(error.what()));
  }
  const int64_t outputs = parts->model->outputsize_multiplier();
  TORCH_CHECK_VALUE(parts->loss->outputsize_multiplier() == outputs,
                    "Forecaster: expected a model with the ", parts->loss->outputsize_multiplier(),
                    " outputs of its loss ", parts->loss->name(), ", got one with ", outputs,
                    "; save it with a file that names its loss, as checkpoint.h describes");
  TORCH_CHECK_VALUE(parts->batch_size >= 1, "Forecaster: expected a batch_size of at least 1, got ",
                    parts->batch_size);
  parts->output_names = prefixed_names(*parts->loss);
  parts->file.metadata = file.metadata;
  // So that a copy beside another configuration stays the same.
  if (!file.metadata.contains(kFlashTrain)) parts->file.metadata.emplace(kConfiguration, "{}");
  TensorMap norm;
  for (const auto& [name, tensor] : file.tensors) {
    if (!is_outside_the_network(name)) continue;
    parts->file.tensors.emplace(name, tensor);
    if (name.starts_with(kScalerPrefix)) {
      norm.emplace(name.substr(std::string(kScalerPrefix).size()), tensor);
    }
  }
  load_state_dict(*parts->norm.ptr(), norm);
  to_float32(*parts->norm.ptr(), norm);
  parts->norm.ptr()->eval();
  parts_ = std::move(parts);
}

Forecaster Forecaster::load(const std::string& path, const std::string& model) {
  std::error_code ignored;
  if (std::filesystem::is_directory(path, ignored)) return Forecaster(read_folder(path, model));
  TORCH_CHECK_VALUE(model.empty(),
                    "Forecaster: expected `model` only for a folder with several, got ",
                    excerpt(model), " for the file ", path);
  return Forecaster(read_file(path));
}

}  // namespace flash::models
