#pragma once
// The Adam optimiser (Kingma and Ba, arXiv:1412.6980) as torch.optim.Adam computes it with its
// defaults, in one pass over memory. torch::optim::Adam takes several, and squares complex
// gradients instead of their two parts.

#include <ATen/core/Tensor.h>

#include <map>
#include <string>
#include <utility>
#include <vector>

namespace flash::models {

class Adam {
 public:
  /// Parameters and the names for their state. Contiguous ones.
  explicit Adam(const std::vector<std::pair<std::string, at::Tensor>>& parameters);

  void zero_grad();
  /// Steps along the gradients; parameters without one stay.
  void step(double learning_rate);

  /// Moments and step counts; they share memory with the optimiser.
  std::map<std::string, at::Tensor> state() const;

 private:
  std::vector<std::string> names_;
  std::vector<at::Tensor> parameters_;  // as given
  std::vector<at::Tensor> values_;      // their memory, as real numbers
  std::vector<at::Tensor> means_, squares_, steps_;
};

}  // namespace flash::models
