#include "ops/storage_checks.h"

#include <ATen/EmptyTensor.h>
#include <c10/util/Exception.h>

namespace flash {

void check_storage(std::initializer_list<TensorOrNone> tensors) {
  for (const auto [t] : tensors) {
    const bool has_memory = t != nullptr && t->is_cpu() && t->has_storage() &&
                            !t->unsafeGetTensorImpl()->is_python_dispatch() &&
                            !t->unsafeGetTensorImpl()->has_symbolic_sizes_strides() &&
                            !t->key_set().has(c10::DispatchKey::Functionalize);
    if (!has_memory) continue;
    const size_t needed = at::detail::computeStorageNbytes(
        t->sizes(), t->strides(), t->element_size(), static_cast<size_t>(t->storage_offset()));
    TORCH_CHECK_VALUE(needed <= t->storage().nbytes(), "flash::attention: expected ", needed,
                      " bytes of storage for a tensor of shape ", t->sizes(), ", got ",
                      t->storage().nbytes(), "; it was resized under the tensor");
  }
}

}  // namespace flash
