// torch.classes.flash_models.Model and torch.ops.flash_models.read_model, the basis of the Python
// package flash_attention.models. They are registered with torch instead of pybind11, so that
// libflash_models.so does not depend on Python and works with every version of it.

#include <flash_attention/models/checkpoint.h>
#include <torch/library.h>
#include <torch/torch.h>

#include <tuple>
#include <utility>

#include "neuralforecast_names.h"
#include "python/bound_model.h"
#include "rng_state_guard.h"

namespace flash::models {
namespace {

using Tensors = std::vector<at::Tensor>;
using OptionalTensor = std::optional<at::Tensor>;
using Texts = c10::Dict<std::string, std::string>;
using TensorsByName = c10::Dict<std::string, at::Tensor>;

class PythonModelClass : public torch::CustomClassHolder {
 public:
  PythonModelClass(std::string model_class, std::string options, int64_t outputsize_multiplier,
                   bool use_flash_attention, int64_t flash_block_size, bool gradient_checkpointing)
      : model_({.model_class = std::move(model_class),
                .options = std::move(options),
                .outputsize_multiplier = outputsize_multiplier,
                .config = {.use_flash_attention = use_flash_attention,
                           .flash_block_size = flash_block_size,
                           .gradient_checkpointing = gradient_checkpointing}}) {}

  /// For each tensor: names, a copy of its value, whether it is a parameter, requires_grad.
  std::vector<std::tuple<std::vector<std::string>, at::Tensor, bool, bool>> tensors() {
    std::vector<std::tuple<std::vector<std::string>, at::Tensor, bool, bool>> list;
    for (const NamedTensor& own : model_.tensors()) {
      list.emplace_back(own.names, own.tensor.detach().clone(), own.is_parameter,
                        own.is_parameter && own.tensor.requires_grad());
    }
    return list;
  }

  /// All options as JSON, including those that neuralforecast lacks.
  std::string options() { return model_.options(); }

  at::Tensor forward(const Tensors& given, bool training, const OptionalTensor& insample_y,
                     const OptionalTensor& insample_mask, const OptionalTensor& futr_exog,
                     const OptionalTensor& hist_exog, const OptionalTensor& stat_exog) {
    return model_.forward(given, training,
                          {.insample_y = insample_y.value_or(at::Tensor()),
                           .insample_mask = insample_mask.value_or(at::Tensor()),
                           .futr_exog = futr_exog.value_or(at::Tensor()),
                           .hist_exog = hist_exog.value_or(at::Tensor()),
                           .stat_exog = stat_exog.value_or(at::Tensor())});
  }

  void save(const std::string& path, const Tensors& given, const Texts& metadata,
            const TensorsByName& others) {
    SafetensorsFile keep;
    for (const auto& item : metadata) keep.metadata[item.key()] = item.value();
    for (const auto& item : others) keep.tensors[item.key()] = item.value();
    model_.save(path, given, keep);
  }

 private:
  PythonModel model_;
};

/// Reads a file of save_model or of neuralforecast's save. Returns the class, options as JSON,
/// outputs per step, weights, the file's metadata, and its tensors that are not weights.
std::tuple<std::string, std::string, int64_t, TensorsByName, Texts, TensorsByName> read_model(
    const std::string& path) {
  const RngStateGuard unmoved;
  const SafetensorsFile file = read_safetensors(path);
  const std::shared_ptr<ForecastModel> model = load_model(file);
  TensorsByName weights, others;
  Texts metadata;
  for (const NamedTensor& own : named_tensors(*model)) {
    for (const std::string& name : own.names) weights.insert(name, own.tensor.detach());
  }
  for (const auto& [name, tensor] : file.tensors) {
    if (is_outside_the_network(name)) others.insert(name, tensor);
  }
  for (const auto& [key, text] : file.metadata) metadata.insert(key, text);
  return {model->model_class(),
          options_of(*model),
          model->outputsize_multiplier(),
          weights,
          metadata,
          others};
}

TORCH_LIBRARY(flash_models, m) {
  m.class_<PythonModelClass>("Model")
      .def(torch::init<std::string, std::string, int64_t, bool, int64_t, bool>())
      .def("tensors", &PythonModelClass::tensors)
      .def("options", &PythonModelClass::options)
      .def("forward", &PythonModelClass::forward)
      .def("save", &PythonModelClass::save);
  m.def("read_model", read_model);
}

}  // namespace
}  // namespace flash::models
