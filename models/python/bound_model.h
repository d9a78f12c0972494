#pragma once
// A C++ model that computes with the parameters of a Python module.
//
// Python owns the parameters: its optimizers, `.to()`, `load_state_dict` and autograd see ordinary
// torch.nn.Parameter objects. A forward receives their tensors ("given") and binds the tensors of
// the C++ layers ("own") to them.
//
// Invariant. While a model is bound, each own tensor
//  - is the very TensorImpl that the layer registered: it is changed in place, never replaced,
//    because layers hold copies of the handle;
//  - aliases the given tensor's storage, with the same offset, sizes, strides, dtype, and
//    conjugate and negative bits;
//  - shares its version counter, so that autograd notices a change in place before the backward;
//  - has its gradient edge, so that gradients go to the Python parameter, or to what computed it
//    (a parametrization, torch.func.functional_call). To autograd, own is not a leaf.
//
// Binding to other tensors is allowed only when nothing can still read the old ones through own:
// no forward is running (`uses_`), and nobody but the layers refers to own (its use count is that
// after construction, `handles_`). The use count is sufficient because a pending backward can reach
// a parameter in these ways only:
//  - It saved own itself, or a view, which holds own as its base: a reference.
//  - It saved an alias (a detached tensor, or what saved-tensor hooks packed): this has its own
//    pointer to the old storage, which rebinding leaves alone.
//  - It recomputes a block: gradient_checkpoint.cpp keeps references to all of the block's
//    parameters and buffers, also to those that need no gradient.
// Code that reads a parameter in a backward in any other way, for example through a pointer to its
// layer, would break this and compute wrong gradients silently.
// tests/python/models/test_bound_model.py covers each case.
//
// If binding is not allowed, PythonModel builds another BoundModel and leaves the old one to the
// graph that needs it.
//
// A BoundModel holds strong references to the gradient edges, and so to the Python parameters,
// until it is bound to others or destroyed.
//
// Simpler designs do not suffice. Layers that take parameters as arguments would have to replace
// every module of torch::nn. Python parameters that wrap the C++ module's own TensorImpls would
// exclude functional_call, parametrizations, load_state_dict(assign=True), and copies.

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

/// A parameter or buffer of a model with all its names.
struct NamedTensor {
  std::vector<std::string> names;  ///< several if modules share it
  at::Tensor tensor;
  bool is_parameter;
};

/// Parameters, then buffers, in order of registration.
std::vector<NamedTensor> named_tensors(ForecastModel& model);

/// All options as JSON, including those that neuralforecast lacks.
std::string options_of(ForecastModel& model);

/// The arguments of make_model.
struct ModelArguments {
  std::string model_class;
  std::string options;
  int64_t outputsize_multiplier;
  ModelConfig config;
};

/// A C++ model, and the binding of its tensors.
class BoundModel {
 public:
  explicit BoundModel(const ModelArguments& arguments);

  ForecastModel& model() { return *model_; }
  const std::vector<NamedTensor>& tensors() const { return tensors_; }

  /// Binds the model to `given`, in the order of tensors(), and sets its mode. Returns false and
  /// changes nothing if a running forward or a pending backward still needs the old binding. Not
  /// thread-safe. Throws c10::ValueError or c10::NotImplementedError for tensors that cannot be
  /// bound.
  bool bind(const std::vector<at::Tensor>& given, bool training);

  /// Keeps the model alive and bound as it is.
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
  bool is_bound_to(size_t i, const at::Tensor& given, const torch::autograd::Edge& edge) const;
  bool is_busy() const;

  std::shared_ptr<ForecastModel> model_;
  std::vector<NamedTensor> tensors_;
  std::vector<torch::autograd::Edge> edges_;  // of the given tensors
  std::vector<size_t> handles_;               // use counts after construction
  std::atomic<int> uses_{0};
};

/// A thread-safe model. It uses one BoundModel, and replaces it by a new one if parameters change
/// while a backward with the old ones is pending.
class PythonModel {
 public:
  explicit PythonModel(ModelArguments arguments);

  /// Parameters and buffers: the initial ones before the first forward, then the bound ones.
  std::vector<NamedTensor> tensors();
  std::string options();

  /// The model's output with `given` as parameters and buffers, in the order of tensors().
  at::Tensor forward(const std::vector<at::Tensor>& given, bool training,
                     const WindowsBatch& windows);
  /// save_model with `given` as parameters and buffers.
  void save(const std::string& path, const std::vector<at::Tensor>& given,
            const SafetensorsFile& keep);

 private:
  BoundModel::Use bind(const std::vector<at::Tensor>& given, bool training);

  const ModelArguments arguments_;
  std::mutex mutex_;
  std::shared_ptr<BoundModel> bound_;
};

}  // namespace flash::models
