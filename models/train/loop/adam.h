#pragma once
// The Adam optimiser (Kingma and Ba, arXiv:1412.6980) with the results and defaults of
// torch.optim.Adam, in one pass over memory. torch::optim::Adam needs several passes, and squares
// complex gradients instead of their two parts.

#include <ATen/core/Tensor.h>

#include <map>
#include <string>
#include <utility>
#include <vector>

namespace flash::models {

class Adam {
 public:
  /// Parameters, which must be contiguous, and names for their state.
  explicit Adam(const std::vector<std::pair<std::string, at::Tensor>>& parameters);

  void zero_grad();
  /// Updates the parameters that have gradients.
  void step(double learning_rate);

  /// Moments and step counts; they share memory with the optimiser.
  std::map<std::string, at::Tensor> state() const;

 private:
  std::vector<std::string> names_;
  std::vector<at::Tensor> parameters_;
  std::vector<at::Tensor> values_;  // the parameters as real tensors, in the same memory
  std::vector<at::Tensor> means_, squares_, steps_;
};

}  // namespace flash::models
