#pragma once
// Private to ops/: the options of a recorded call, as its autograd node keeps them.

#include <torch/csrc/autograd/saved_variable.h>
#include <torch/csrc/dynamo/compiled_autograd.h>

#include <array>
#include <cstddef>
#include <optional>

#include "ops/options.h"

namespace flash {

inline std::optional<at::Tensor> optional_tensor(const at::Tensor& t) {
  return t.defined() ? std::optional<at::Tensor>(t) : std::nullopt;
}

/// The tensors are SavedVariables, so that autograd notices when one of them is modified in place.
class SavedOptions {
 public:
  explicit SavedOptions(const AttentionOptions& options) : settings_(options) {
    size_t i = 0;
    for_each_tensor(settings_, [&](std::optional<at::Tensor>& t) {
      if (t.has_value()) tensors_[i] = torch::autograd::SavedVariable(*t, /*is_output=*/false);
      t.reset();
      ++i;
    });
  }

  /// The options without their tensors.
  const AttentionOptions& settings() const { return settings_; }

  AttentionOptions unpack() const {
    AttentionOptions options = settings_;
    size_t i = 0;
    for_each_tensor(options, [&](std::optional<at::Tensor>& t) {
      t = optional_tensor(tensors_[i++].unpack());
    });
    return options;
  }

  std::array<torch::autograd::SavedVariable, kTensorOptions>& tensors() { return tensors_; }

  /// Tells compiled autograd every option that is not a tensor: calls that differ in one of them
  /// must not share a compiled backward.
  void collect_settings(torch::dynamo::autograd::CompiledNodeArgs& args) const {
    for_each_option(settings_, [&](const auto& option) { collect(args, option); });
  }

 private:
  template <class T>
  static void collect(torch::dynamo::autograd::CompiledNodeArgs& args, const T& option) {
    args.collect(option);
  }
  static void collect(torch::dynamo::autograd::CompiledNodeArgs&,
                      const std::optional<at::Tensor>&) {}
  static void collect(torch::dynamo::autograd::CompiledNodeArgs& args, const Window& window) {
    args.collect(window.left);
    args.collect(window.right);
  }

  AttentionOptions settings_;
  std::array<torch::autograd::SavedVariable, kTensorOptions> tensors_;
};

}  // namespace flash
