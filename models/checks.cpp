#include "checks.h"

#include <c10/util/Exception.h>

#include <cmath>
#include <limits>

namespace flash::models {

namespace {

// Sums and products of two sizes fit int64_t.
constexpr int64_t kLargestSize = std::numeric_limits<int32_t>::max();

}  // namespace

void Checks::positive(const char* name, int64_t value) const {
  TORCH_CHECK_VALUE(value >= 1, model_, ": expected ", name, " of at least 1, got ", value);
}

void Checks::size(const char* name, int64_t value) const {
  positive(name, value);
  TORCH_CHECK_VALUE(value <= kLargestSize, model_, ": expected ", name, " of at most ",
                    kLargestSize, ", got ", value);
}

void Checks::probability(const char* name, double value) const {
  TORCH_CHECK_VALUE(value >= 0.0 && value <= 1.0, model_, ": expected ", name,
                    " between 0 and 1, got ", value);
}

void Checks::heads(int64_t hidden_size, const char* name, int64_t heads) const {
  TORCH_CHECK_VALUE(hidden_size >= heads, model_, ": expected hidden_size of at least ", name,
                    ", got hidden_size ", hidden_size, " and ", name, " ", heads);
}

int64_t Checks::label_length(int64_t input_size, double multiplier) const {
  const double length = std::ceil(static_cast<double>(input_size) * multiplier);
  TORCH_CHECK_VALUE(length > 0 && length < static_cast<double>(input_size), model_,
                    ": expected decoder_input_size_multiplier to leave the decoder between 1 and "
                    "input_size - 1 = ",
                    input_size - 1, " steps of the past, got ", length, " with ", multiplier);
  return static_cast<int64_t>(length);
}

void Checks::series(const at::Tensor& insample_y, int64_t input_size, int64_t series) const {
  TORCH_CHECK_VALUE(insample_y.defined(), model_, ": expected insample_y, got none");
  TORCH_CHECK_VALUE(
      insample_y.dim() == 3 && insample_y.size(1) == input_size && insample_y.size(2) == series,
      model_, ": expected insample_y [batch, ", input_size, ", ", series, "], got ",
      insample_y.sizes(),
      series == 1 ? "; the model is univariate, so give the columns of a table as "
                    "windows of their own"
                  : "");
}

void Checks::futr_exog(const at::Tensor& exog, int64_t batch, int64_t rows,
                       const std::vector<std::string>& names) const {
  if (names.empty()) return absent("futr_exog", exog);
  const auto columns = static_cast<int64_t>(names.size());
  TORCH_CHECK_VALUE(exog.defined(), model_, ": expected futr_exog [", batch, ", ", rows, ", ",
                    columns, "], since futr_exog_list names ", columns, " column(s); got none");
  TORCH_CHECK_VALUE(
      exog.dim() == 3 && exog.size(0) == batch && exog.size(1) == rows && exog.size(2) == columns,
      model_, ": expected futr_exog [", batch, ", ", rows, ", ", columns,
      "] (past and future rows), got ", exog.sizes());
}

void Checks::absent(const char* name, const at::Tensor& tensor) const {
  TORCH_CHECK_VALUE(!tensor.defined(), model_, ": expected no ", name, ", got ", tensor.sizes(),
                    "; the model does not use it, or was built without its column names");
}

}  // namespace flash::models
