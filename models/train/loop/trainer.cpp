#include "train/loop/trainer.h"

#include <ATen/CPUGeneratorImpl.h>
#include <torch/torch.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <optional>

namespace flash::models {
namespace {

std::map<std::string, at::Tensor> snapshot(const TableForecaster& forecaster) {
  std::map<std::string, at::Tensor> copy;
  for (const auto& [name, tensor] : forecaster.state()) copy.emplace(name, tensor.clone());
  return copy;
}

class Stopwatch {
 public:
  double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

}  // namespace

Trainer::Trainer(TableForecaster& forecaster, const WindowDataset& train_windows,
                 const WindowDataset& validation_windows, const TrainingSettings& settings,
                 Processes& processes)
    : adam(forecaster.parameters()),
      // A separate generator, so that dropout does not change the order of the windows.
      order_generator(at::detail::createCPUGenerator(settings.seed)),
      forecaster_(forecaster),
      train_windows_(train_windows),
      validation_windows_(validation_windows),
      settings_(settings),
      processes_(processes),
      exchange_(forecaster.parameters(), processes) {}

int64_t Trainer::batch_size() const {
  return std::clamp<int64_t>(settings_.batch_size, 1, train_windows_.size());
}

int64_t Trainer::steps_per_epoch() const {
  return (train_windows_.size() + batch_size() - 1) / batch_size();
}

double Trainer::learning_rate() const {
  const int64_t decays = std::max<int64_t>(0, state.epoch - settings_.decay_after);
  return settings_.learning_rate * std::pow(settings_.decay, static_cast<double>(decays));
}

bool Trainer::finished() const {
  const auto done = static_cast<int64_t>(state.result.epochs.size());
  return done >= settings_.epochs ||
         (settings_.patience > 0 && done - state.result.best_epoch >= settings_.patience);
}

void Trainer::step() {
  if (!state.order.defined()) {
    state.order = torch::randperm(train_windows_.size(), order_generator);
  }
  forecaster_.train();
  const int64_t begin = state.step * batch_size();
  const torch::Tensor indices =
      state.order.slice(0, begin, std::min(begin + batch_size(), train_windows_.size()));
  adam.zero_grad();
  last_loss_ = backward(indices);
  adam.step(learning_rate());
  state.loss_sum += last_loss_ * static_cast<double>(indices.size(0));
  ++state.step;
}

void Trainer::check_loss(double loss) const {
  TORCH_CHECK_VALUE(std::isfinite(loss), "training: expected a finite loss, got ", loss,
                    " in epoch ", state.epoch, ", step ", state.step + 1,
                    "; lower the learning rate (now ", learning_rate(), ")");
}

/// The loss of these windows, with its gradient in the parameters.
double Trainer::backward(const at::Tensor& indices) {
  if (processes_.alone()) {
    const torch::Tensor loss = forecaster_.training_loss(train_windows_.batch(indices));
    const auto value = loss.item<double>();
    check_loss(value);
    loss.backward();
    return value;
  }
  // A seed for each step, not the state of a generator, so that a checkpoint need not store one
  // for each process. Processes that compute the same windows drop the same elements: then their
  // batch norms, of which each has its own, have the same statistics.
  const bool divided = processes_.divides(indices);
  const auto step = static_cast<uint64_t>((state.epoch - 1) * steps_per_epoch() + state.step);
  torch::manual_seed(settings_.seed + 1 + step * static_cast<uint64_t>(processes_.count()) +
                     static_cast<uint64_t>(divided ? processes_.rank() : 0));
  std::optional<SharedStatistics> of_all;
  if (divided) of_all.emplace(processes_);
  const torch::Tensor loss =
      forecaster_.training_loss(train_windows_.batch(processes_.share(indices)));
  // A loss is a mean over windows, or the root of one: then the means are added, and the gradient
  // of the root is that of their sum over twice the root.
  const bool is_root = forecaster_.loss_settings.name == "RMSE";
  torch::Tensor part = (is_root ? loss.square() : loss) * processes_.weight(indices);
  auto value = processes_.sum(part.detach().to(at::kDouble).view({1})).item<double>();
  if (is_root) {
    value = std::sqrt(value);
    part = part / (2 * value);
  }
  check_loss(value);
  exchange_.begin();
  part.backward();
  exchange_.finish();
  return value;
}

bool Trainer::finish_epoch(Progress& progress, const std::function<bool()>& interrupted) {
  const Stopwatch stopwatch;
  at::Generator generator = at::detail::getDefaultCPUGenerator();
  const torch::Tensor before = generator.get_state();
  const auto validation =
      validate(forecaster_, validation_windows_, settings_.batch_size, processes_, interrupted);
  if (!validation) {
    generator.set_state(before);  // the whole validation will be repeated
    return false;
  }
  TrainingResult& result = state.result;
  const bool best = std::isfinite(validation->loss) &&
                    (result.best_epoch == 0 ||
                     validation->loss <
                         result.epochs[static_cast<size_t>(result.best_epoch) - 1].validation_loss);
  result.epochs.push_back(
      {.train_loss = state.loss_sum / static_cast<double>(train_windows_.size()),
       .validation_loss = validation->loss,
       .validation_mae = validation->errors.mae,
       .validation_mse = validation->errors.mse,
       .learning_rate = learning_rate(),
       .seconds = state.epoch_seconds + stopwatch.seconds()});
  result.seconds += result.epochs.back().seconds;
  if (best) {
    result.best_epoch = state.epoch;
    state.best = snapshot(forecaster_);
  }
  progress.epoch(state.epoch, result.epochs.back().train_loss, validation->loss, best);
  ++state.epoch;
  state.step = 0;
  state.order = at::Tensor();
  state.loss_sum = state.epoch_seconds = 0.0;
  return true;
}

bool Trainer::run(Progress& progress, const std::function<bool()>& interrupted,
                  const std::function<void(bool best)>& after_epoch) {
  while (!finished()) {
    if (processes_.any(interrupted())) return false;
    if (state.step < steps_per_epoch()) {
      const Stopwatch stopwatch;
      step();
      state.epoch_seconds += stopwatch.seconds();
      progress.step(state.epoch, state.step, last_loss_);
    } else {
      if (!finish_epoch(progress, interrupted)) return false;
      after_epoch(state.result.best_epoch == static_cast<int64_t>(state.result.epochs.size()));
    }
  }
  TORCH_CHECK_VALUE(state.result.best_epoch > 0,
                    "training: expected a finite validation loss, got none; lower the learning "
                    "rate (now ",
                    settings_.learning_rate, ")");
  adam.zero_grad();
  forecaster_.load_state(state.best);
  forecaster_.train(false);
  return true;
}

}  // namespace flash::models
