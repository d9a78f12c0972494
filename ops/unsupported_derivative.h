#pragma once
// Private to ops/: a derivative that is not implemented throws when it is used, not when it is
// recorded: create_graph=True and torch.func.grad record one more than their caller may need.

#include <ATen/core/Tensor.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

namespace flash {

class UnsupportedDerivative : public torch::autograd::Node {
 public:
  UnsupportedDerivative(std::string message, torch::autograd::edge_list&& next_edges)
      : Node(std::move(next_edges)), message_(std::move(message)) {}

  /// While gradients are recorded, gives each of `results` a derivative with respect to `inputs`
  /// that throws c10::NotImplementedError with this message.
  static void attach(const char* message, const std::vector<at::Tensor>& inputs,
                     torch::autograd::variable_list& results) {
    if (!at::GradMode::is_enabled()) return;
    auto edges = torch::autograd::collect_next_edges(at::TensorList(inputs));
    const bool any = std::any_of(edges.begin(), edges.end(),
                                 [](const torch::autograd::Edge& e) { return e.is_valid(); });
    if (!any) return;
    const auto node = c10::make_intrusive<UnsupportedDerivative>(message, std::move(edges));
    for (at::Tensor& result : results) {
      if (result.defined()) torch::autograd::create_gradient_edge(result, node);
    }
  }

  torch::autograd::variable_list apply(torch::autograd::variable_list&&) override {
    TORCH_CHECK_NOT_IMPLEMENTED(false, message_);
  }

 private:
  std::string message_;
};

}  // namespace flash
