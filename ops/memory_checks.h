#pragma once
// Private to ops/: torch lets anyone shrink a storage under its tensors, as those do who free
// parameters early; what reads such a tensor then, torch's own operators too, reads past the end.

#include <ATen/core/Tensor.h>

#include <initializer_list>
#include <optional>

namespace flash {

/// A tensor, or none: what is optional or undefined.
struct TensorOrNone {
  TensorOrNone(const at::Tensor& t) : tensor(t.defined() ? &t : nullptr) {}
  TensorOrNone(const std::optional<at::Tensor>& t) : tensor(t.has_value() ? &*t : nullptr) {}
  const at::Tensor* tensor;
};

/// Throws c10::ValueError if one of the tensors is larger than its storage. Those that stand for
/// others, inside a transform or a tracer, are passed over: what they stand for comes later.
void check_memory(std::initializer_list<TensorOrNone> tensors);

}  // namespace flash
