#include "train/output/run_file.h"

#include <ATen/CPUGeneratorImpl.h>
#include <torch/torch.h>

#include <algorithm>
#include <filesystem>
#include <limits>
#include <sstream>

#include "message_text.h"
#include "storage/json_text.h"
#include "train/command/settings_json.h"
#include "train/command/stored_settings.h"

namespace flash::models {

NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(EpochResult, train_loss, validation_loss, validation_mae,
                                   validation_mse, learning_rate, seconds)

namespace {

using Json = nlohmann::json;

/// null stands for NaN and infinity, which JSON lacks: the loss of an epoch that overflowed.
std::vector<EpochResult> read_epochs(Json epochs) {
  for (Json& epoch : epochs) {
    for (Json& number : epoch) {
      if (number.is_null()) number = std::numeric_limits<double>::quiet_NaN();
    }
  }
  return epochs.get<std::vector<EpochResult>>();
}

constexpr const char* kRunMetadataKey = "flash_train_run";
constexpr const char* kModel = "model/";
constexpr const char* kBest = "best/";
constexpr const char* kAdam = "adam/";
constexpr const char* kTorchGenerator = "generator/torch";
constexpr const char* kOrderGenerator = "generator/order";
constexpr const char* kOrder = "order";

void insert(TensorMap& all, const std::string& prefix, const TensorMap& some) {
  for (const auto& [name, tensor] : some) all.emplace(prefix + name, tensor);
}

TensorMap under(const TensorMap& all, const std::string& prefix) {
  TensorMap some;
  for (const auto& [name, tensor] : all) {
    if (name.starts_with(prefix)) some.emplace(name.substr(prefix.size()), tensor);
  }
  return some;
}

/// The tensors of weights and optimiser. They share memory with the trainer, so copying into them
/// restores it.
TensorMap tensors_in_use(const TableForecaster& forecaster, const Trainer& trainer) {
  TensorMap tensors;
  insert(tensors, kModel, forecaster.state());
  insert(tensors, kAdam, trainer.adam.state());
  return tensors;
}

std::string describe(const at::Tensor& tensor) {
  std::ostringstream text;
  text << tensor.scalar_type() << " " << tensor.sizes();
  return text.str();
}

void check_tensors(const std::string& path, const TensorMap& expected, const TensorMap& given) {
  constexpr size_t kShown = 8;  // the file of another model differs in every tensor
  std::vector<std::string> problems;
  for (const auto& [name, tensor] : expected) {
    const auto found = given.find(name);
    if (found == given.end()) {
      problems.push_back("missing: " + name);
    } else if (found->second.sizes() != tensor.sizes() ||
               found->second.scalar_type() != tensor.scalar_type()) {
      problems.push_back(name + ": expected " + describe(tensor) + ", got " +
                         describe(found->second));
    }
  }
  for (const auto& entry : given) {
    if (!expected.contains(entry.first)) problems.push_back("unexpected: " + excerpt(entry.first));
  }
  std::string text;
  for (size_t i = 0; i < std::min(problems.size(), kShown); ++i) text += "\n  " + problems[i];
  if (problems.size() > kShown) text += c10::str("\n  and ", problems.size() - kShown, " more");
  TORCH_CHECK_VALUE(problems.empty(), path,
                    ": expected the tensors of this training, got a set that differs:", text);
}

std::string absolute(const std::string& path) {
  return path.empty() ? path : std::filesystem::absolute(path).string();
}

/// Absolute paths, so that the training can be resumed from another folder.
Settings with_absolute_paths(Settings settings) {
  OutputSettings& output = settings.output;
  for (std::string* path : {&settings.csv, &output.model, &output.checkpoint, &output.forecast_csv,
                            &output.forecast_png, &output.report}) {
    *path = absolute(*path);
  }
  return settings;
}

template <class Function>
auto with_json_errors(const std::string& path, const Function& function) {
  try {
    return function();
  } catch (const Json::exception& error) {
    TORCH_CHECK_VALUE(false, path, ": expected ", kRunMetadataKey,
                      " metadata as flash_train writes it, got: ", excerpt(error.what()));
  }
}

Json parse_description(const std::string& path, const Metadata& metadata) {
  const auto text = metadata.find(kRunMetadataKey);
  TORCH_CHECK_VALUE(text != metadata.end(), path,
                    ": expected the checkpoint of a training, got a file without ", kRunMetadataKey,
                    " in its metadata");
  return parse_json_object(
      text->second, path + ": expected " + kRunMetadataKey + " in its metadata as a JSON object");
}

}  // namespace

void save_run(const std::string& path, const Settings& settings, const TableForecaster& forecaster,
              const Trainer& trainer, const std::string& data_fingerprint) {
  const TrainingState& state = trainer.state;
  TensorMap tensors = tensors_in_use(forecaster, trainer);
  insert(tensors, kBest, state.best);
  tensors[kTorchGenerator] = at::detail::getDefaultCPUGenerator().get_state();
  tensors[kOrderGenerator] = trainer.order_generator.get_state();
  if (state.order.defined()) tensors[kOrder] = state.order;
  const Json description = {{"settings", with_absolute_paths(settings)},
                            {"data", data_fingerprint},
                            {"epoch", state.epoch},
                            {"step", state.step},
                            {"loss_sum", state.loss_sum},
                            {"epoch_seconds", state.epoch_seconds},
                            {"epochs", state.result.epochs},
                            {"best_epoch", state.result.best_epoch},
                            {"seconds", state.result.seconds}};
  write_safetensors(path, tensors, {{kRunMetadataKey, to_text(description, path)}});
}

RunFile read_run(const std::string& path) {
  RunFile run{.path = path, .file = read_safetensors(path), .settings = {}};
  const Json description = parse_description(path, run.file.metadata);
  run.settings = with_json_errors(
      path, [&] { return read_settings<Settings>(description.at("settings"), path); });
  check_training_settings(run.settings, path);
  return run;
}

void restore_run(const RunFile& run, const TableForecaster& forecaster, Trainer& trainer,
                 const std::string& data_fingerprint) {
  const TensorMap& given = run.file.tensors;
  TrainingState state;
  with_json_errors(run.path, [&] {
    const Json json = parse_description(run.path, run.file.metadata);
    TORCH_CHECK_VALUE(json.at("data").get<std::string>() == data_fingerprint, run.path,
                      ": expected the data that the training began with, but ", run.settings.csv,
                      " has other values now, or other names or times");
    json.at("epoch").get_to(state.epoch);
    json.at("step").get_to(state.step);
    json.at("loss_sum").get_to(state.loss_sum);
    json.at("epoch_seconds").get_to(state.epoch_seconds);
    state.result.epochs = read_epochs(json.at("epochs"));
    json.at("best_epoch").get_to(state.result.best_epoch);
    json.at("seconds").get_to(state.result.seconds);
  });
  const auto epochs = static_cast<int64_t>(state.result.epochs.size());
  TORCH_CHECK_VALUE(
      state.epoch == epochs + 1 && state.step >= 0 && state.step <= trainer.steps_per_epoch() &&
          state.result.best_epoch >= 0 && state.result.best_epoch <= epochs,
      run.path, ": expected a position in the training, got epoch ", state.epoch, ", step ",
      state.step, " of ", trainer.steps_per_epoch(), ", best epoch ", state.result.best_epoch);
  const TensorMap in_use = tensors_in_use(forecaster, trainer);
  TensorMap expected = in_use;
  if (state.result.best_epoch > 0) insert(expected, kBest, forecaster.state());
  at::Generator generator = at::detail::getDefaultCPUGenerator();
  expected[kTorchGenerator] = generator.get_state();
  expected[kOrderGenerator] = trainer.order_generator.get_state();
  const bool ordered = state.step > 0;
  if (ordered) expected[kOrder] = torch::empty({trainer.windows()}, torch::kLong);
  check_tensors(run.path, expected, given);

  if (ordered) {
    state.order = given.at(kOrder);
    TORCH_CHECK_VALUE(std::get<0>(state.order.sort()).equal(torch::arange(trainer.windows())),
                      run.path, ": expected an order of ", trainer.windows(),
                      " windows, got one with gaps");
  }
  state.best = under(given, kBest);
  torch::NoGradGuard no_grad;
  for (const auto& [name, target] : in_use) at::Tensor(target).copy_(given.at(name));
  generator.set_state(given.at(kTorchGenerator));
  trainer.order_generator.set_state(given.at(kOrderGenerator));
  trainer.state = std::move(state);
}

}  // namespace flash::models
