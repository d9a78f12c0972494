#pragma once
// Checks of options and windows that several models share, so that their messages agree.

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

namespace flash::models {

/// The checks of one model; each throws c10::ValueError with a message that begins with the model's
/// name.
class Checks {
 public:
  explicit Checks(std::string model) : model_(std::move(model)) {}

  void positive(const char* name, int64_t value) const;
  /// At least 1, and below 2^31.
  void size(const char* name, int64_t value) const;
  void probability(const char* name, double value) const;
  /// Each head needs a width of at least 1.
  void heads(int64_t hidden_size, const char* name, int64_t heads) const;
  /// Past steps at the start of the decoder's input, which h zeros follow: between 1 and
  /// input_size - 1.
  int64_t label_length(int64_t input_size, double multiplier) const;

  /// insample_y [B, input_size, series]
  void series(const at::Tensor& insample_y, int64_t input_size, int64_t series) const;
  /// futr_exog [B, rows, F], or undefined if `names` is empty.
  void futr_exog(const at::Tensor& exog, int64_t batch, int64_t rows,
                 const std::vector<std::string>& names) const;
  void absent(const char* name, const at::Tensor& tensor) const;

 private:
  std::string model_;
};

}  // namespace flash::models
