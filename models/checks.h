#pragma once
// What every model asks of its options and windows, worded once.

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

namespace flash::models {

/// The checks of one model; each throws c10::ValueError beginning with its name.
class Checks {
 public:
  explicit Checks(std::string model) : model_(std::move(model)) {}

  void positive(const char* name, int64_t value) const;
  /// At least 1, and small enough to calculate with.
  void size(const char* name, int64_t value) const;
  void probability(const char* name, double value) const;
  /// A head needs a width of at least 1.
  void heads(int64_t hidden_size, const char* name, int64_t heads) const;
  /// Steps of the past in front of the decoder's h zeros: between 1 and input_size - 1.
  int64_t label_length(int64_t input_size, double multiplier) const;

  /// insample_y [B, input_size, series]
  void series(const at::Tensor& insample_y, int64_t input_size, int64_t series) const;
  /// futr_exog [B, rows, F] exactly where `names` is not empty.
  void futr_exog(const at::Tensor& exog, int64_t batch, int64_t rows,
                 const std::vector<std::string>& names) const;
  void absent(const char* name, const at::Tensor& tensor) const;

 private:
  std::string model_;
};

}  // namespace flash::models
