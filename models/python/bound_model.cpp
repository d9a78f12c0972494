#include "python/bound_model.h"

#include <flash_attention/models/checkpoint.h>
#include <flash_attention/models/registry.h>
#include <torch/torch.h>

#include <algorithm>
#include <map>
#include <utility>

#include "rng_state_guard.h"
#include "storage/json_options.h"

namespace flash::models {
namespace {

using torch::autograd::Edge;
namespace impl = torch::autograd::impl;

void check(const NamedTensor& own, const at::Tensor& given) {
  const std::string& name = own.names[0];
  TORCH_CHECK_VALUE(given.defined(), name, ": expected a tensor, got none");
  // set_data would drop a tangent silently, and a wrapper of torch.func has no data.
  const c10::DispatchKeySet wrappers(
      {c10::DispatchKey::FuncTorchBatched, c10::DispatchKey::FuncTorchGradWrapper});
  TORCH_CHECK_NOT_IMPLEMENTED(!given.key_set().has_any(wrappers), name,
                              ": expected an ordinary tensor, got one that torch.func transforms; "
                              "use torch.autograd for gradients of parameters");
  TORCH_CHECK_NOT_IMPLEMENTED(!given._fw_grad(/*level=*/0).defined(), name,
                              ": expected a tensor without a tangent; forward-mode derivatives of "
                              "parameters are not implemented, use torch.autograd.grad");
  TORCH_CHECK_VALUE(given.device().is_cpu() && given.layout() == at::kStrided, name,
                    ": expected a dense tensor on the CPU, where this extension computes, got ",
                    given.layout(), " on ", given.device(),
                    "; move the model and its input there, "
                    "for example with .to(\"cpu\")");
  TORCH_CHECK_VALUE(given.sizes() == own.tensor.sizes(), name, ": expected the shape ",
                    own.tensor.sizes(), ", got ", given.sizes());
}

/// Checked here, because a layer's error for a wrong dtype or device would not name the tensor.
void check_windows(const std::string& model_class, const WindowsBatch& windows,
                   const std::vector<at::Tensor>& given) {
  const auto weight = std::find_if(given.begin(), given.end(), [](const at::Tensor& tensor) {
    return tensor.is_floating_point();
  });
  if (weight == given.end()) return;
  const auto check_one = [&](const char* name, const at::Tensor& tensor) {
    if (!tensor.defined()) return;
    TORCH_CHECK_VALUE(tensor.device().is_cpu(), model_class, ": expected ", name,
                      " on the CPU, got ", tensor.device(), "; move it there with .to(\"cpu\")");
    TORCH_CHECK_VALUE(tensor.scalar_type() == weight->scalar_type(), model_class, ": expected ",
                      name, " in ", weight->scalar_type(), " as the parameters are, got ",
                      tensor.scalar_type(), "; convert one of them with .float() or .double()");
  };
  check_one("insample_y", windows.insample_y);
  check_one("futr_exog", windows.futr_exog);
  check_one("hist_exog", windows.hist_exog);
  check_one("stat_exog", windows.stat_exog);
}

}  // namespace

std::vector<NamedTensor> named_tensors(ForecastModel& model) {
  std::vector<NamedTensor> found;
  std::map<const void*, size_t> position;
  std::map<std::string, size_t> by_name;
  const auto add = [&](const auto& items, bool is_parameter) {
    for (const auto& item : items) {
      const auto [at, is_new] = position.emplace(item->unsafeGetTensorImpl(), found.size());
      if (is_new) found.push_back({.names = {}, .tensor = *item, .is_parameter = is_parameter});
      found[at->second].names.push_back(item.key());
      by_name.emplace(item.key(), at->second);
    }
  };
  add(model.module().named_parameters(), true);
  add(model.module().named_buffers(), false);
  for (const auto& [alias, owner] : model.tied_parameters()) {
    if (!by_name.contains(alias)) found[by_name.at(owner)].names.push_back(alias);
  }
  return found;
}

std::string options_of(ForecastModel& model) {
  JsonOptionWriter writer;
  model.visit_options(writer);
  writer.options.update(writer.ours);
  return writer.options.dump();
}

BoundModel::BoundModel(const ModelArguments& arguments) {
  // A model that is built under no_grad or inference_mode must be trainable, too.
  const c10::InferenceMode no_inference(false);
  const at::AutoGradMode with_gradients(true);
  model_ = make_model(arguments.model_class, arguments.options, arguments.outputsize_multiplier,
                      arguments.config);
  tensors_ = named_tensors(*model_);
  edges_.resize(tensors_.size());
  for (const NamedTensor& own : tensors_) handles_.push_back(own.tensor.use_count());
}

bool BoundModel::is_bound_to(size_t i, const at::Tensor& given, const Edge& edge) const {
  const at::Tensor& own = tensors_[i].tensor;
  return own.is_alias_of(given) && own.storage_offset() == given.storage_offset() &&
         own.scalar_type() == given.scalar_type() && own.strides() == given.strides() &&
         own.is_conj() == given.is_conj() && own.is_neg() == given.is_neg() && edges_[i] == edge &&
         own.requires_grad() == edge.is_valid();
}

bool BoundModel::is_busy() const {
  if (uses_ > 0) return true;
  for (size_t i = 0; i < tensors_.size(); ++i) {
    if (tensors_[i].tensor.use_count() > handles_[i]) return true;
  }
  return false;
}

bool BoundModel::bind(const std::vector<at::Tensor>& given, bool training) {
  TORCH_CHECK_VALUE(given.size() == tensors_.size(), model_->model_class(), ": expected ",
                    tensors_.size(), " tensors, got ", given.size());
  std::vector<Edge> edges(given.size());
  bool same = model_->module().is_training() == training;
  for (size_t i = 0; i < given.size(); ++i) {
    check(tensors_[i], given[i]);
    edges[i] = impl::gradient_edge(given[i]);
    same = same && is_bound_to(i, given[i], edges[i]);
  }
  if (same) return true;
  if (is_busy()) return false;
  model_->module().train(training);
  for (size_t i = 0; i < given.size(); ++i) {
    const at::Tensor& own = tensors_[i].tensor;
    if (is_bound_to(i, given[i], edges[i])) continue;
    impl::set_gradient_edge(own, Edge());
    own.set_requires_grad(false);
    own.set_data(given[i]);
    // Inference tensors have no version counter.
    if (!given[i].is_inference()) impl::set_version_counter(own, impl::version_counter(given[i]));
    edges_[i] = edges[i];
    if (edges[i].is_valid()) impl::set_gradient_edge(own, edges[i]);
  }
  return true;
}

PythonModel::PythonModel(ModelArguments arguments)
    : arguments_(std::move(arguments)), bound_(std::make_shared<BoundModel>(arguments_)) {}

std::vector<NamedTensor> PythonModel::tensors() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return bound_->tensors();
}

std::string PythonModel::options() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return options_of(bound_->model());
}

BoundModel::Use PythonModel::bind(const std::vector<at::Tensor>& given, bool training) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!bound_->bind(given, training)) {
    const RngStateGuard unmoved;
    auto other = std::make_shared<BoundModel>(arguments_);
    other->bind(given, training);
    bound_ = std::move(other);
  }
  return BoundModel::Use(bound_);
}

at::Tensor PythonModel::forward(const std::vector<at::Tensor>& given, bool training,
                                const WindowsBatch& windows) {
  const BoundModel::Use use = bind(given, training);
  check_windows(arguments_.model_class, windows, given);
  at::Tensor output = use.model().forward(windows);
  // A layer that is recomputed in the backward needs the model, even if Python has released it.
  if (output.requires_grad()) output.register_hook([bound = use.bound()](const at::Tensor&) {});
  return output;
}

void PythonModel::save(const std::string& path, const std::vector<at::Tensor>& given,
                       const SafetensorsFile& keep) {
  const BoundModel::Use use = bind(given, /*training=*/false);
  save_model(path, use.model(), keep);
}

}  // namespace flash::models
