#include "ops/dtypes.h"

#include <ATen/ATen.h>

namespace flash {

at::Tensor in_dtype(const at::Tensor& t, at::ScalarType dtype) {
  return t.scalar_type() == dtype ? t : t.to(dtype);
}

at::Tensor in_compute_dtype(const at::Tensor& t) {
  return in_dtype(t, compute_dtype(t.scalar_type()));
}

std::optional<at::Tensor> in_compute_dtype(const std::optional<at::Tensor>& t) {
  return t.has_value() ? std::optional<at::Tensor>(in_compute_dtype(*t)) : t;
}

AttentionOptions in_compute_dtype(AttentionOptions options) {
  for (std::optional<at::Tensor>* t : differentiable_options(options)) *t = in_compute_dtype(*t);
  return options;
}

}  // namespace flash
