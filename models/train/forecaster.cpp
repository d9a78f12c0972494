#include "train/forecaster.h"

#include <flash_attention/models/checkpoint.h>
#include <torch/torch.h>

#include <nlohmann/json.hpp>

namespace flash::models {
namespace {

using Json = nlohmann::json;

constexpr const char* kMetadataKey = "flash_train";

std::vector<double> to_vector(const at::Tensor& tensor) {
  const at::Tensor numbers = tensor.to(at::kDouble).contiguous();
  return {numbers.const_data_ptr<double>(), numbers.const_data_ptr<double>() + numbers.numel()};
}

}  // namespace

void save_forecaster(const std::string& path, Forecaster& forecaster) {
  const Json description = {{"columns", forecaster.data.columns},
                            {"mean", to_vector(forecaster.scaler.mean)},
                            {"deviation", to_vector(forecaster.scaler.deviation)},
                            {"train_fraction", forecaster.data.train_fraction},
                            {"validation_fraction", forecaster.data.validation_fraction},
                            {"season", forecaster.data.season}};
  save_model(path, *forecaster.model,
             {.tensors = {}, .metadata = {{kMetadataKey, description.dump()}}});
}

Forecaster load_forecaster(const std::string& path, const ModelConfig& config) {
  const SafetensorsFile file = read_safetensors(path);
  const auto text = file.metadata.find(kMetadataKey);
  TORCH_CHECK_VALUE(text != file.metadata.end(), path,
                    ": expected a model written by flash_train, got "
                    "a file without ",
                    kMetadataKey, " in its metadata");
  Forecaster forecaster{.model = load_model<PatchTST>(file, config), .scaler = {}, .data = {}};
  try {
    const Json description = Json::parse(text->second);
    description.at("columns").get_to(forecaster.data.columns);
    description.at("train_fraction").get_to(forecaster.data.train_fraction);
    description.at("validation_fraction").get_to(forecaster.data.validation_fraction);
    description.at("season").get_to(forecaster.data.season);
    forecaster.scaler.mean =
        torch::tensor(description.at("mean").get<std::vector<double>>(), at::kDouble);
    forecaster.scaler.deviation =
        torch::tensor(description.at("deviation").get<std::vector<double>>(), at::kDouble);
  } catch (const Json::exception& error) {
    TORCH_CHECK_VALUE(false, path, ": expected ", kMetadataKey,
                      " metadata as flash_train writes it, got: ", error.what());
  }
  const auto columns = static_cast<int64_t>(forecaster.data.columns.size());
  TORCH_CHECK_VALUE(
      forecaster.scaler.mean.numel() == columns && forecaster.scaler.deviation.numel() == columns,
      path, ": expected a mean and a deviation for each of ", columns, " columns, got ",
      forecaster.scaler.mean.numel(), " and ", forecaster.scaler.deviation.numel());
  return forecaster;
}

}  // namespace flash::models
