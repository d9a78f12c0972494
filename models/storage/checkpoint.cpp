#include <flash_attention/models/checkpoint.h>
#include <torch/torch.h>

#include <limits>
#include <nlohmann/json.hpp>
#include <utility>

#include "layers/decomposition/fourier_modes.h"
#include "message_text.h"
#include "model_factory.h"
#include "neuralforecast_names.h"
#include "storage/json_text.h"
#include "storage/model_file.h"

namespace flash::models {
namespace {

using Json = nlohmann::json;

// More keys, and the format version, that neuralforecast 3.x expects in the header.
constexpr const char* kFormat = "nf_format";
constexpr const char* kFormatVersion = "2";
constexpr const char* kSharedTensors = "shared";
// Keys of this project.
constexpr const char* kFourierIndex = "fourier_index";

/// The parameter whose size depends on outputsize_multiplier, by class. neuralforecast stores that
/// number only inside its loss.
struct Head {
  const char* model_class;
  const char* bias;
  bool per_step;  // whether its size is outputsize_multiplier * h
};
constexpr Head kHeads[] = {
    {"Autoformer", "decoder.projection.bias", false},
    {"FEDformer", "decoder.projection.bias", false},
    {"Informer", "decoder.projection.bias", false},
    {"PatchTST", "model.head.linear.bias", true},
    {"TFT", "output_adapter.bias", false},
    {"iTransformer", "projector.bias", true},
};

/// The JSON object under `key`, empty if there is none.
Json parse_metadata(const Metadata& metadata, const char* key) {
  const auto text = metadata.find(key);
  if (text == metadata.end()) return Json::object();
  return parse_json_object(text->second,
                           std::string("load_model: expected ") + key + " as a JSON object");
}

/// 1 for an unknown class, for which make_model has a better error message.
int64_t outputs_per_step(const std::string& model_class, const TensorMap& tensors, int64_t h) {
  for (const Head& head : kHeads) {
    if (model_class != head.model_class) continue;
    const int64_t steps = head.per_step ? h : 1;
    const auto bias = tensors.find(head.bias);
    const bool good = bias != tensors.end() && steps >= 1 && bias->second.dim() == 1 &&
                      bias->second.size(0) >= steps && bias->second.size(0) % steps == 0;
    TORCH_CHECK_VALUE(good, "load_model: expected ", head.bias, " of a multiple of ",
                      head.per_step ? "h = " : "", steps, " elements, got ",
                      bias == tensors.end() ? std::string("none") : c10::str(bias->second.sizes()));
    return bias->second.size(0) / steps;
  }
  return 1;
}

bool is_set(const Json& value) {
  return !value.is_null() && value != Json(false) && !value.empty();
}

/// Rejects hyperparameters that change a model's inputs, instead of silently ignoring them. The
/// others that neuralforecast stores concern training only.
void refuse_what_the_model_lacks(const Json& hyper_parameters, const JsonOptionReader& reader,
                                 const std::string& model_class) {
  for (const auto& [name, value] : hyper_parameters.items()) {
    if (reader.known().contains(name) || !is_set(value)) continue;
    TORCH_CHECK_VALUE(name != "exclude_insample_y",
                      "load_model: exclude_insample_y is not supported by ", model_class);
    TORCH_CHECK_VALUE(name != "cat_exog_list", "load_model: expected no cat_exog_list, got ",
                      json_excerpt(value),
                      "; neuralforecast embeds those columns outside of the model, which ",
                      model_class, " here does not: encode them as numeric columns instead");
    TORCH_CHECK_VALUE(!name.ends_with("_exog_list"), "load_model: expected no ", excerpt(name),
                      ", got ", json_excerpt(value), "; ", model_class, " has no such columns");
  }
}

/// FEDformer draws its frequencies from random_seed. A file without a seed must list them, unless
/// all frequencies are used.
void check_fourier_modes(Json& hyper_parameters) {
  const auto number = [&](const char* name) -> int64_t {
    const auto found = hyper_parameters.find(name);
    return found != hyper_parameters.end() && found->is_number_integer() ? found->get<int64_t>()
                                                                         : -1;
  };
  if (number("random_seed") >= 0) return;
  const int64_t h = number("h"), input_size = number("input_size"), modes = number("modes");
  TORCH_CHECK_VALUE(
      hyper_parameters.contains(kFourierIndex) ||
          hyper_parameters.value("mode_select", Json()) != "random" ||
          takes_all_fourier_modes(h, input_size, modes),
      "load_model: expected ", kFourierIndex, " in the file's metadata or random_seed in ",
      kHyperParameters,
      ", got neither: with mode_select \"random\" the weights belong to frequencies that the file "
      "does not name; if you know them give them as options, {\"fourier_index\": {\"enc_self\": "
      "[...], \"dec_self\": [...], \"dec_cross_q\": [...], \"dec_cross_kv\": [...]}}");
  hyper_parameters["random_seed"] = 1;  // its draws are not used
}

Json read_hyper_parameters(const SafetensorsFile& file, const Json& replaced) {
  TORCH_CHECK_VALUE(file.metadata.contains(kModelClass) && file.metadata.contains(kHyperParameters),
                    "load_model: expected ", kModelClass, " and ", kHyperParameters,
                    " in the file's metadata; for bare weights build the model with its options "
                    "and call load_state_dict");
  Json hyper_parameters = parse_metadata(file.metadata, kHyperParameters);
  if (const Json index = parse_metadata(file.metadata, kFourierIndex); !index.empty()) {
    hyper_parameters[kFourierIndex] = index;
  }
  hyper_parameters.update(replaced);
  if (file.metadata.at(kModelClass) == "FEDformer") check_fourier_modes(hyper_parameters);
  return hyper_parameters;
}

}  // namespace

TensorMap neuralforecast_state_dict(ForecastModel& model) {
  TensorMap tensors = state_dict(model.module());
  for (const auto& [alias, owner] : model.tied_parameters()) tensors[alias] = tensors.at(owner);
  if (model.model_class() == "TFT") {
    JsonOptionWriter writer;
    model.visit_options(writer);
    const int64_t steps =
        writer.options.at("input_size").get<int64_t>() + writer.options.at("h").get<int64_t>();
    const auto like = tensors.at("output_adapter.bias").options();
    tensors["temporal_fusion_decoder.attention._mask"] =
        at::full({1, steps, steps}, -std::numeric_limits<double>::infinity(), like).triu(1);
  }
  return tensors;
}

namespace {

std::string text_of(const Json& json) {
  try {
    return json.dump();
  } catch (const Json::exception& error) {
    TORCH_CHECK_VALUE(false,
                      "save_model: expected names and options in UTF-8, got: ", error.what());
  }
}

}  // namespace

SafetensorsFile model_file(ForecastModel& model, const SafetensorsFile& keep) {
  JsonOptionWriter writer;
  model.visit_options(writer);
  Json hyper_parameters = parse_metadata(keep.metadata, kHyperParameters);
  hyper_parameters.update(writer.options);

  TensorMap tensors = neuralforecast_state_dict(model);
  for (const auto& [name, tensor] : tensors) {
    TORCH_CHECK_VALUE(
        tensor.scalar_type() != at::kComplexDouble,
        "save_model: expected complex weights in single precision, got ", name,
        " in double, for which safetensors has no name; call to(torch::kFloat) first");
  }
  for (const auto& [name, tensor] : keep.tensors) {
    if (is_outside_the_network(name)) tensors.emplace(name, tensor);
  }
  // A shared parameter is stored once; the header lists its other names.
  Json shared = Json::object();
  const Json kept_shared = parse_metadata(keep.metadata, kSharedTensors);
  for (const auto& [name, others] : kept_shared.items()) {
    if (is_outside_the_network(name)) shared[name] = others;
  }
  for (const auto& [alias, owner] : model.tied_parameters()) {
    shared[owner].push_back(alias);
    tensors.erase(alias);
  }

  Metadata metadata = keep.metadata;
  metadata.erase(kFourierIndex);
  for (const auto& [name, value] : writer.ours.items()) metadata[name] = text_of(value);
  metadata[kModelClass] = model.model_class();
  metadata[kHyperParameters] = text_of(hyper_parameters);
  metadata[kFormat] = kFormatVersion;
  metadata[kSharedTensors] = text_of(shared);
  return {.tensors = std::move(tensors), .metadata = std::move(metadata)};
}

void save_model(const std::string& path, ForecastModel& model, const SafetensorsFile& keep) {
  const SafetensorsFile file = model_file(model, keep);
  write_safetensors(path, file.tensors, file.metadata);
}

std::shared_ptr<ForecastModel> load_model(const SafetensorsFile& file, const ModelConfig& config,
                                          const std::string& options) {
  const Json replaced = parse_options(options, "load_model");
  const Json hyper_parameters = read_hyper_parameters(file, replaced);
  const std::string& model_class = file.metadata.at(kModelClass);
  JsonOptionReader reader("load_model", hyper_parameters, JsonOptionReader::Missing::kRefuse);
  int64_t h = 0;
  reader.visit("h", h);
  const auto model =
      make_model(model_class, reader,
                 {.outputsize_multiplier = outputs_per_step(model_class, file.tensors, h),
                  .config = config,
                  .refuse_unknown = false,
                  .limit = limit_of_file(file.tensors)});
  for (const auto& [name, value] : replaced.items()) {
    TORCH_CHECK_VALUE(reader.known().contains(name), "load_model: expected an option of ",
                      model_class, ", got ", excerpt(name));
  }
  refuse_what_the_model_lacks(hyper_parameters, reader, model_class);
  load_state_dict(model->module(), file.tensors);
  model->module().eval();
  return model;
}

std::shared_ptr<ForecastModel> load_model(const std::string& path, const ModelConfig& config,
                                          const std::string& options) {
  return load_model(read_safetensors(path), config, options);
}

void refuse_class(const std::string& loaded) {
  TORCH_CHECK_VALUE(false, "load_model: expected a file of the requested class, got one of ",
                    loaded, "; load_model without a class takes any of the six");
  std::abort();  // unreachable, but the macro is not known to throw
}

}  // namespace flash::models
