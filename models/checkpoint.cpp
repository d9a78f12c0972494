#include <flash_attention/models/checkpoint.h>
#include <torch/torch.h>

#include <nlohmann/json.hpp>
#include <utility>

namespace flash::models {
namespace {

using Json = nlohmann::json;

// The keys and the format number that neuralforecast 3.x looks for in the header.
constexpr const char* kModelClass = "model_class";
constexpr const char* kHyperParameters = "hyper_parameters";
constexpr const char* kFormat = "nf_format";
constexpr const char* kFormatVersion = "2";
constexpr const char* kSharedTensors = "shared";

/// Calls visit(name, option) for each option that neuralforecast stores.
template <class Visitor>
void for_each_option(PatchTSTOptions& options, Visitor&& visit) {
  visit("h", options.h());
  visit("input_size", options.input_size());
  visit("encoder_layers", options.encoder_layers());
  visit("n_heads", options.n_heads());
  visit("hidden_size", options.hidden_size());
  visit("linear_hidden_size", options.linear_hidden_size());
  visit("dropout", options.dropout());
  visit("fc_dropout", options.fc_dropout());
  visit("head_dropout", options.head_dropout());
  visit("attn_dropout", options.attn_dropout());
  visit("patch_len", options.patch_len());
  visit("stride", options.stride());
  visit("revin", options.revin());
  visit("revin_affine", options.revin_affine());
  visit("revin_subtract_last", options.revin_subtract_last());
  visit("activation", options.activation());
  visit("res_attention", options.res_attention());
  visit("batch_normalization", options.batch_normalization());
  visit("learn_pos_embed", options.learn_pos_embed());
}

Json parse_hyper_parameters(const Metadata& metadata) {
  const auto model_class = metadata.find(kModelClass);
  const auto text = metadata.find(kHyperParameters);
  TORCH_CHECK_VALUE(
      model_class != metadata.end() && text != metadata.end(), "load_patchtst: expected ",
      kModelClass, " and ", kHyperParameters,
      " in the file's metadata; for bare weights build the model with its options and "
      "call load_state_dict");
  TORCH_CHECK_VALUE(model_class->second == "PatchTST",
                    "load_patchtst: expected a file of model PatchTST, got ", model_class->second);
  const Json parsed = Json::parse(text->second, nullptr, /*allow_exceptions=*/false);
  TORCH_CHECK_VALUE(parsed.is_object(), "load_patchtst: expected ", kHyperParameters,
                    " as a JSON object, got ", text->second.substr(0, 80));
  return parsed;
}

/// The number of outputs per step belongs to neuralforecast's loss; the head's size tells it.
int64_t outputs_per_step(const TensorMap& tensors, int64_t h) {
  const auto bias = tensors.find("model.head.linear.bias");
  const bool good = bias != tensors.end() && h >= 1 && bias->second.dim() == 1 &&
                    bias->second.size(0) >= h && bias->second.size(0) % h == 0;
  TORCH_CHECK_VALUE(good, "load_patchtst: expected model.head.linear.bias of a multiple of h = ", h,
                    " numbers, got ",
                    bias == tensors.end() ? std::string("none") : c10::str(bias->second.sizes()));
  return bias->second.size(0) / h;
}

}  // namespace

void save_patchtst(const std::string& path, PatchTST& model, Metadata metadata) {
  Json hyper_parameters = Json::object();
  for_each_option(model->options,
                  [&](const char* name, const auto& value) { hyper_parameters[name] = value; });
  metadata[kModelClass] = "PatchTST";
  metadata[kHyperParameters] = hyper_parameters.dump();
  metadata[kFormat] = kFormatVersion;
  metadata[kSharedTensors] = "{}";
  write_safetensors(path, state_dict(*model), metadata);
}

PatchTST load_patchtst(const SafetensorsFile& file, const ModelConfig& config) {
  const Json hyper_parameters = parse_hyper_parameters(file.metadata);
  PatchTSTOptions options(1, 1);
  for_each_option(options, [&](const char* name, auto& value) {
    const auto found = hyper_parameters.find(name);
    TORCH_CHECK_VALUE(found != hyper_parameters.end(), "load_patchtst: expected ", name, " in ",
                      kHyperParameters);
    try {
      found->get_to(value);
    } catch (const Json::exception&) {
      TORCH_CHECK_VALUE(false, "load_patchtst: hyper-parameter ", name,
                        " has a value of wrong type: ", found->dump());
    }
  });
  TORCH_CHECK_VALUE(
      !hyper_parameters.value("exclude_insample_y", false),
      "load_patchtst: exclude_insample_y is not supported, since this model has no other "
      "input");
  options.outputsize_multiplier(outputs_per_step(file.tensors, options.h())).config(config);
  PatchTST model(options);
  load_state_dict(*model, file.tensors);
  model->eval();
  return model;
}

PatchTST load_patchtst(const std::string& path, const ModelConfig& config) {
  return load_patchtst(read_safetensors(path), config);
}

}  // namespace flash::models
