#pragma once
// Private to ops/: torch lets anyone shrink the storage of a tensor, as is done to free parameters
// early. Reading such a tensor, even with torch's own operators, reads past the end of its storage.

#include <ATen/core/Tensor.h>

#include <initializer_list>
#include <optional>

namespace flash {

/// A tensor, or none: an empty optional or an undefined tensor.
struct TensorOrNone {
  TensorOrNone(const at::Tensor& t) : tensor(t.defined() ? &t : nullptr) {}
  TensorOrNone(const std::optional<at::Tensor>& t) : tensor(t.has_value() ? &*t : nullptr) {}
  const at::Tensor* tensor;
};

/// Throws c10::ValueError if one of the tensors is larger than its storage. Wrapper tensors of a
/// transform or a tracer are skipped: the tensors that they wrap are checked at a later key.
void check_storage(std::initializer_list<TensorOrNone> tensors);

}  // namespace flash
