// Calls with tensors on other devices: an error that says what to do, in place of the dispatcher's
// list of its keys.

#include <torch/library.h>

namespace flash {
namespace {

void refuse_device(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const c10::IValue& query = torch::jit::peek(*stack, 0, op.schema().arguments().size());
  TORCH_CHECK_NOT_IMPLEMENTED(
      false, op.schema().name(),
      ": expected tensors on the CPU, the only device with kernels, got ",
      op.schema().arguments()[0].name(), " on ", query.toTensor().device(),
      "; move them with .cpu(), or call flash_attention.scaled_dot_product_attention, which leaves "
      "other devices to torch");
}

void refuse_all(torch::Library& m) {
  for (const char* name :
       {"attention", "attention_with_lse", "_forward", "_backward", "_forward_part",
        "_backward_part", "varlen_attention", "_varlen_forward", "_varlen_backward"}) {
    m.impl(name, torch::CppFunction::makeFromBoxedFunction<&refuse_device>());
  }
}

}  // namespace
}  // namespace flash

TORCH_LIBRARY_IMPL(flash, CUDA, m) { flash::refuse_all(m); }
TORCH_LIBRARY_IMPL(flash, XPU, m) { flash::refuse_all(m); }
TORCH_LIBRARY_IMPL(flash, MPS, m) { flash::refuse_all(m); }
