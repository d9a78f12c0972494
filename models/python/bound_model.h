#pragma once
// A C++ model that computes with the parameters of a Python module.
//
// Python owns the parameters: its optimizers, `.to()`, `load_state_dict` and autograd see ordinary
// torch.nn.Parameter objects. Before each forward the tensors that the layers hold are made to
// stand for them: the same memory, the same version counter, and the same edge in the graph of
// gradients, so that a gradient arrives in the Python parameter itself, or in whatever computed it.

#include <ATen/core/Tensor.h>
#include <flash_attention/models/forecast_model.h>
#include <flash_attention/models/model_config.h>
#include <flash_attention/models/safetensors.h>
#include <torch/csrc/autograd/edge.h>

#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

namespace flash::models {

/// One tensor of a model: a parameter or a buffer, under each of its names.
struct NamedTensor {
  std::vector<std::string> names;  ///< several where modules share it
  at::Tensor tensor;
  bool is_parameter;
};

/// Parameters, then buffers, in the order in which they were registered.
std::vector<NamedTensor> named_tensors(ForecastModel& model);

/// The options as JSON, defaults included, and with them what neuralforecast lacks.
std::string options_of(ForecastModel& model);

/// Torch's CPU generator is put back where it was at the end: what is drawn in between is for
/// weights that are replaced at once.
class RngStateGuard {
 public:
  RngStateGuard();
  ~RngStateGuard();
  RngStateGuard(const RngStateGuard&) = delete;
  RngStateGuard& operator=(const RngStateGuard&) = delete;

 private:
  at::Tensor state_;
};

/// What make_model takes.
struct Recipe {
  std::string model_class;
  std::string options;
  int64_t outputsize_multiplier;
  ModelConfig config;
};

/// One C++ model and what its tensors stand for.
class BoundModel {
 public:
  explicit BoundModel(const Recipe& recipe);

  ForecastModel& model() { return *model_; }
  const std::vector<NamedTensor>& tensors() const { return tensors_; }

  /// Makes the model's tensors stand for `given`, which come in the order of tensors(), and sets
  /// its mode. False, and nothing changed, if that would change what a forward that is running or
  /// a graph that awaits its backward uses. Not for two threads at once.
  bool bind(const std::vector<at::Tensor>& given, bool training);

  /// Keeps the model alive, and as it is bound.
  class Use {
   public:
    explicit Use(std::shared_ptr<BoundModel> bound) : bound_(std::move(bound)) { ++bound_->uses_; }
    ~Use() { --bound_->uses_; }
    Use(const Use&) = delete;
    Use& operator=(const Use&) = delete;

    ForecastModel& model() const { return *bound_->model_; }
    const std::shared_ptr<BoundModel>& bound() const { return bound_; }

   private:
    std::shared_ptr<BoundModel> bound_;
  };

 private:
  bool stands_for(size_t i, const at::Tensor& given, const torch::autograd::Edge& edge) const;
  bool busy() const;

  std::shared_ptr<ForecastModel> model_;
  std::vector<NamedTensor> tensors_;
  std::vector<torch::autograd::Edge> edges_;  // where the gradient of each tensor goes
  std::vector<size_t> handles_;               // references to each tensor while nothing is saved
  std::atomic<int> uses_{0};
};

/// A model for any number of threads. Nearly always one BoundModel; another takes its place where
/// parameters are replaced while gradients with respect to the old ones are still to come.
class PythonModel {
 public:
  explicit PythonModel(Recipe recipe);

  /// Parameters and buffers as they are now; before the first forward the initial ones.
  std::vector<NamedTensor> tensors();
  std::string options();

  /// The model's forward with `given` as its parameters and buffers, in the order of tensors().
  at::Tensor forward(const std::vector<at::Tensor>& given, bool training,
                     const WindowsBatch& windows);
  /// save_model with `given` as weights.
  void save(const std::string& path, const std::vector<at::Tensor>& given,
            const SafetensorsFile& keep);

 private:
  BoundModel::Use bind(const std::vector<at::Tensor>& given, bool training);

  const Recipe recipe_;
  std::mutex mutex_;
  std::shared_ptr<BoundModel> bound_;
};

}  // namespace flash::models
