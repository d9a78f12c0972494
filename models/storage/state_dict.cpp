#include <flash_attention/models/forecast_model.h>
#include <flash_attention/models/safetensors.h>
#include <torch/torch.h>

#include <sstream>
#include <vector>

#include "message_text.h"
#include "neuralforecast_names.h"

namespace flash::models {
namespace {

/// neuralforecast also stores TFT's causal mask, which the network here does not need.
bool is_no_weight(const std::string& name) {
  return is_outside_the_network(name) || name == "temporal_fusion_decoder.attention._mask";
}

/// `tensors` with each parameter under its name in the module. Other names that come with different
/// values are listed in `contradicting`.
TensorMap without_ties(const torch::nn::Module& module, const TensorMap& tensors,
                       std::vector<std::string>& contradicting) {
  TensorMap result = tensors;
  const auto* model = dynamic_cast<const ForecastModel*>(&module);
  if (model == nullptr) return result;
  for (const auto& [alias, owner] : model->tied_parameters()) {
    const auto tied = result.find(alias);
    if (tied == result.end()) continue;
    const auto [kept, is_only_one] = result.emplace(owner, tied->second);
    if (!is_only_one && (kept->second.scalar_type() != tied->second.scalar_type() ||
                         !at::equal(kept->second, tied->second))) {
      contradicting.push_back(alias + " and " + owner);
    }
    result.erase(tied);
  }
  return result;
}

enum class Kind { kBool, kInteger, kFloating, kComplex };

Kind kind_of(const at::Tensor& tensor) {
  if (tensor.is_complex()) return Kind::kComplex;
  if (tensor.is_floating_point()) return Kind::kFloating;
  return tensor.scalar_type() == at::kBool ? Kind::kBool : Kind::kInteger;
}

std::string describe(const at::Tensor& tensor) {
  std::ostringstream text;
  text << tensor.scalar_type() << " " << tensor.sizes();
  return text.str();
}

/// One line per kind of problem. Long lists are truncated, because the wrong model misses all
/// names.
void append(std::ostringstream& message, const char* title, const std::vector<std::string>& items) {
  constexpr size_t kShown = 8;
  if (items.empty()) return;
  message << "\n  " << title << " (" << items.size() << "): ";
  for (size_t i = 0; i < std::min(items.size(), kShown); ++i) {
    message << (i > 0 ? "; " : "") << items[i];
  }
  if (items.size() > kShown) message << "; ...";
}

}  // namespace

TensorMap state_dict(const torch::nn::Module& module) {
  TensorMap tensors;
  for (const auto& item : module.named_parameters()) tensors.emplace(item.key(), item->detach());
  for (const auto& item : module.named_buffers()) tensors.emplace(item.key(), item->detach());
  return tensors;
}

void load_state_dict(torch::nn::Module& module, const TensorMap& given) {
  const TensorMap own = state_dict(module);
  std::vector<std::string> missing, unexpected, mismatched, contradicting;
  const TensorMap tensors = without_ties(module, given, contradicting);
  for (const auto& [name, target] : own) {
    const auto found = tensors.find(name);
    if (found == tensors.end()) {
      missing.push_back(name);
    } else if (found->second.sizes() != target.sizes() ||
               kind_of(found->second) != kind_of(target)) {
      mismatched.push_back(name + " expected " + describe(target) + ", got " +
                           describe(found->second));
    }
  }
  for (const auto& [name, tensor] : tensors) {
    if (!own.contains(name) && !is_no_weight(name)) unexpected.push_back(excerpt(name));
  }
  std::ostringstream problems;
  append(problems, "missing", missing);
  append(problems, "unexpected", unexpected);
  append(problems, "of another shape or kind", mismatched);
  append(problems, "one parameter with two values", contradicting);
  TORCH_CHECK_VALUE(problems.str().empty(), "load_state_dict: expected the tensors of ",
                    module.name(), ", got a set that differs:", problems.str());
  torch::NoGradGuard no_grad;
  for (const auto& [name, target] : own) at::Tensor(target).copy_(tensors.at(name));
}

}  // namespace flash::models
