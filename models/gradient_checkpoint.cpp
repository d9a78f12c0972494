#include <ATen/CPUGeneratorImpl.h>
#include <ATen/autocast_mode.h>
#include <flash_attention/models/gradient_checkpoint.h>
#include <torch/torch.h>

#include <algorithm>
#include <mutex>
#include <set>
#include <utility>

namespace flash::models {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using Tensors = std::vector<at::Tensor>;

/// Sets the state of torch's CPU generator for the scope.
class GeneratorGuard {
 public:
  explicit GeneratorGuard(const at::Tensor& state) : before_(get()) { set(state); }
  ~GeneratorGuard() { set(before_); }
  GeneratorGuard(const GeneratorGuard&) = delete;
  GeneratorGuard& operator=(const GeneratorGuard&) = delete;

  static at::Tensor get() {
    at::Generator generator = at::detail::getDefaultCPUGenerator();
    const std::lock_guard<std::mutex> lock(generator.mutex());
    return generator.get_state();
  }

 private:
  static void set(const at::Tensor& state) {
    at::Generator generator = at::detail::getDefaultCPUGenerator();
    const std::lock_guard<std::mutex> lock(generator.mutex());
    generator.set_state(state);
  }

  at::Tensor before_;
};

struct Autocast {
  bool enabled = at::autocast::is_autocast_enabled(at::kCPU);
  at::ScalarType dtype = at::autocast::get_autocast_dtype(at::kCPU);

  void apply() const {
    at::autocast::set_autocast_enabled(at::kCPU, enabled);
    at::autocast::set_autocast_dtype(at::kCPU, dtype);
  }
};

class AutocastGuard {
 public:
  explicit AutocastGuard(const Autocast& settings) { settings.apply(); }
  ~AutocastGuard() { before_.apply(); }
  AutocastGuard(const AutocastGuard&) = delete;
  AutocastGuard& operator=(const AutocastGuard&) = delete;

 private:
  const Autocast before_;
};

/// Restores the current values of buffers at the end of the scope.
class BufferGuard {
 public:
  explicit BufferGuard(const Tensors& buffers) : buffers_(buffers) {
    for (const at::Tensor& buffer : buffers) values_.push_back(buffer.detach().clone());
  }
  ~BufferGuard() {
    const at::NoGradGuard no_grad;
    for (size_t i = 0; i < values_.size(); ++i) {
      // The version counter does not change: the values are the same as before, so other pending
      // uses of the buffer stay valid.
      buffers_[i].variable_data().copy_(values_[i]);
    }
  }
  BufferGuard(const BufferGuard&) = delete;
  BufferGuard& operator=(const BufferGuard&) = delete;

 private:
  const Tensors& buffers_;
  Tensors values_;
};

std::vector<bool> which_are_defined(const Tensors& tensors) {
  std::vector<bool> defined;
  for (const at::Tensor& tensor : tensors) defined.push_back(tensor.defined());
  return defined;
}

/// Without the undefined tensors, which autograd's functions do not accept.
Tensors only_defined(Tensors tensors) {
  std::erase_if(tensors, [](const at::Tensor& tensor) { return !tensor.defined(); });
  return tensors;
}

/// The reverse of only_defined.
Tensors spread(at::TensorList present, const std::vector<bool>& defined) {
  Tensors tensors(defined.size());
  size_t next = 0;
  for (size_t i = 0; i < defined.size(); ++i) {
    if (defined[i]) tensors[i] = present[next++];
  }
  return tensors;
}

/// What the backward needs besides the saved tensors.
struct BlockRecipe : torch::CustomClassHolder {
  BlockOfSeveral block;
  Tensors parameters;  // the module's own: unpacking a saved non-leaf gives another tensor
  Tensors buffers;
  Tensors frozen;  // referenced so that nobody rebinds them, see python/bound_model.h
  std::vector<bool> defined_inputs, defined_outputs;
  at::Tensor generator_state = GeneratorGuard::get();
  Autocast autocast;
};

/// The identity on first derivatives, whose own derivatives are refused.
class FirstDerivative : public torch::autograd::Function<FirstDerivative> {
 public:
  /// The other arguments make the result depend on everything that the gradients depend on.
  static variable_list forward(AutogradContext*, at::TensorList gradients, at::TensorList,
                               at::TensorList) {
    return gradients.vec();
  }

  static variable_list backward(AutogradContext*, const variable_list&) {
    TORCH_CHECK_NOT_IMPLEMENTED(false,
                                "gradient_checkpoint: expected a first derivative, got a request "
                                "for a second one, which is "
                                "not implemented; call the block without gradient_checkpoint");
  }
};

class Recomputed : public torch::autograd::Function<Recomputed> {
 public:
  /// `tensors`: the defined inputs, then the parameters.
  static variable_list forward(AutogradContext* context, at::TensorList tensors,
                               const c10::intrusive_ptr<BlockRecipe>& recipe) {
    context->set_materialize_grads(false);
    context->saved_data["recipe"] = c10::IValue::make_capsule(recipe);
    const size_t inputs = tensors.size() - recipe->parameters.size();
    const Tensors outputs = recipe->block(spread(tensors.slice(0, inputs), recipe->defined_inputs));
    recipe->defined_outputs = which_are_defined(outputs);
    // Parameters are saved, too, though the recipe has them: autograd then detects one that was
    // changed before the backward.
    context->save_for_backward(tensors.vec());
    return only_defined(outputs);
  }

  static variable_list backward(AutogradContext* context, const variable_list& output_gradients) {
    const auto recipe = c10::static_intrusive_pointer_cast<BlockRecipe>(
        context->saved_data.at("recipe").toCapsule());
    const variable_list saved = context->get_saved_variables();
    const size_t inputs = saved.size() - recipe->parameters.size();

    Tensors sources;  // the leaves of the recomputation's graph
    for (size_t i = 0; i < saved.size(); ++i) {
      sources.push_back(i < inputs ? saved[i].detach().set_requires_grad(saved[i].requires_grad())
                                   : recipe->parameters[i - inputs]);
    }
    variable_list gradients = recompute(*recipe, sources, inputs, output_gradients);
    if (at::GradMode::is_enabled()) {  // create_graph
      const Tensors computed = only_defined(gradients), given = only_defined(output_gradients);
      gradients = spread(FirstDerivative::apply(at::TensorList(computed), at::TensorList(given),
                                                at::TensorList(saved)),
                         which_are_defined(gradients));
    }
    gradients.emplace_back();  // of the recipe
    return gradients;
  }

 private:
  static variable_list recompute(const BlockRecipe& recipe, const Tensors& sources, size_t inputs,
                                 const variable_list& output_gradients) {
    const at::AutoGradMode with_gradients(true);
    const GeneratorGuard same_numbers(recipe.generator_state);
    const AutocastGuard same_precision(recipe.autocast);
    const BufferGuard same_statistics(recipe.buffers);
    const Tensors results =
        recipe.block(spread(at::TensorList(sources).slice(0, inputs), recipe.defined_inputs));
    TORCH_CHECK_VALUE(which_are_defined(results) == recipe.defined_outputs,
                      "gradient_checkpoint: expected the block to return the same tensors again, "
                      "got others that are undefined; it must not depend on what changes between "
                      "forward and backward");
    const Tensors outputs = only_defined(results);

    Tensors roots, root_gradients, wanted;
    for (size_t i = 0; i < outputs.size(); ++i) {
      if (!output_gradients[i].defined() || !outputs[i].requires_grad()) continue;
      roots.push_back(outputs[i]);
      root_gradients.push_back(output_gradients[i]);
    }
    std::vector<size_t> wanted_at;
    for (size_t i = 0; i < sources.size(); ++i) {
      if (!sources[i].requires_grad()) continue;
      wanted_at.push_back(i);
      wanted.push_back(sources[i]);
    }
    variable_list gradients(sources.size());
    if (roots.empty() || wanted.empty()) return gradients;
    const variable_list computed =
        torch::autograd::grad(roots, wanted, root_gradients, /*retain_graph=*/false,
                              /*create_graph=*/false, /*allow_unused=*/true);
    for (size_t i = 0; i < wanted.size(); ++i) gradients[wanted_at[i]] = computed[i];
    return gradients;
  }
};

Tensors checkpoint(BlockOfSeveral block, const Tensors& inputs, Tensors parameters,
                   Tensors buffers) {
  const auto needs_gradient = [](const Tensors& tensors) {
    return std::any_of(tensors.begin(), tensors.end(), [](const at::Tensor& tensor) {
      return tensor.defined() && tensor.requires_grad();
    });
  };
  // A parameter that is listed twice would get its gradient twice.
  std::set<const void*> seen;
  Tensors frozen;
  std::erase_if(parameters, [&](const at::Tensor& parameter) {
    if (parameter.defined() && !parameter.requires_grad()) frozen.push_back(parameter);
    return !parameter.defined() || !parameter.requires_grad() ||
           !seen.insert(parameter.unsafeGetTensorImpl()).second;
  });
  if (!at::GradMode::is_enabled() || (parameters.empty() && !needs_gradient(inputs))) {
    return block(inputs);
  }
  auto recipe = c10::make_intrusive<BlockRecipe>();
  recipe->defined_inputs = which_are_defined(inputs);
  variable_list tensors = only_defined(inputs);
  tensors.insert(tensors.end(), parameters.begin(), parameters.end());
  recipe->block = std::move(block);
  recipe->parameters = std::move(parameters);
  recipe->buffers = std::move(buffers);
  recipe->frozen = std::move(frozen);
  const variable_list outputs = Recomputed::apply(at::TensorList(tensors), recipe);
  return spread(outputs, recipe->defined_outputs);
}

BlockOfSeveral as_block_of_several(const Block& block) {
  return [block](const Tensors& inputs) { return Tensors{block(inputs)}; };
}

}  // namespace

at::Tensor gradient_checkpoint(const Block& block, const Tensors& inputs,
                               const Tensors& parameters) {
  return checkpoint(as_block_of_several(block), inputs, parameters, {})[0];
}

Tensors gradient_checkpoint(const BlockOfSeveral& block, const Tensors& inputs,
                            const Tensors& parameters) {
  return checkpoint(block, inputs, parameters, {});
}

at::Tensor gradient_checkpoint(const Block& block, const Tensors& inputs,
                               const torch::nn::Module& module) {
  return checkpoint(as_block_of_several(block), inputs, module.parameters(), module.buffers())[0];
}

Tensors gradient_checkpoint(const BlockOfSeveral& block, const Tensors& inputs,
                            const torch::nn::Module& module) {
  return checkpoint(block, inputs, module.parameters(), module.buffers());
}

}  // namespace flash::models
