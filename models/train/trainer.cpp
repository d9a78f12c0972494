#include "train/trainer.h"

#include <flash_attention/models/safetensors.h>
#include <torch/torch.h>

#include <cmath>
#include <limits>

#include "train/evaluation.h"

namespace flash::models {
namespace {

TensorMap snapshot(const PatchTST& model) {
  TensorMap copy;
  for (const auto& [name, tensor] : state_dict(*model)) copy.emplace(name, tensor.clone());
  return copy;
}

/// One pass over all windows in random order; returns the mean loss.
double train_epoch(PatchTST& model, torch::optim::Adam& optimizer, const WindowDataset& windows,
                   const Settings& settings, int64_t epoch, at::Generator& generator,
                   Progress& progress) {
  model->train();
  double sum = 0.0;
  const torch::Tensor order = torch::randperm(windows.size(), generator);
  int64_t step = 0;
  for (const torch::Tensor& indices : order.split(settings.batch_size)) {
    const WindowBatch batch = windows.batch(indices);
    optimizer.zero_grad();
    const torch::Tensor loss = torch::l1_loss(model->forward(batch.past).squeeze(2), batch.future);
    const double value = loss.item<double>();
    TORCH_CHECK_VALUE(std::isfinite(value), "training: expected a finite loss, got ", value,
                      " in epoch ", epoch, ", step ", step + 1, "; lower the learning rate (now ",
                      settings.learning_rate, ")");
    loss.backward();
    optimizer.step();
    sum += value * static_cast<double>(indices.size(0));
    progress.step(epoch, ++step, value);
  }
  return sum / static_cast<double>(windows.size());
}

}  // namespace

int64_t steps_per_epoch(const WindowDataset& windows, int64_t batch_size) {
  return (windows.size() + batch_size - 1) / batch_size;
}

TrainingResult train(PatchTST& model, const WindowDataset& train_windows,
                     const WindowDataset& validation_windows, const Settings& settings,
                     Progress& progress) {
  torch::optim::Adam optimizer(model->parameters(),
                               torch::optim::AdamOptions(settings.learning_rate));
  // A generator of its own, so that dropout's draws do not change the order of the windows.
  at::Generator generator = at::detail::createCPUGenerator(settings.seed);
  TrainingResult result{.epochs = {}, .best_epoch = 0, .seconds = 0.0};
  TensorMap best;
  double least = std::numeric_limits<double>::infinity();
  for (int64_t epoch = 1; epoch <= settings.epochs; ++epoch) {
    const double start = progress.seconds();
    const double train_loss =
        train_epoch(model, optimizer, train_windows, settings, epoch, generator, progress);
    const double validation_loss = mean_absolute_error(model, validation_windows);
    if (validation_loss < least) {
      least = validation_loss;
      best = snapshot(model);
      result.best_epoch = epoch;
    }
    result.epochs.push_back({train_loss, validation_loss, progress.seconds() - start});
    progress.epoch(epoch, train_loss, validation_loss, result.best_epoch == epoch);
  }
  TORCH_CHECK_VALUE(
      result.best_epoch > 0,
      "training: expected a finite validation loss, got none; lower the learning rate "
      "(now ",
      settings.learning_rate, ")");
  load_state_dict(*model, best);
  model->eval();
  result.seconds = progress.seconds();
  return result;
}

}  // namespace flash::models
