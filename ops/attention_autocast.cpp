// AutocastCPU: as torch's attention, in the lower precision that autocast asks for.

#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>
#include <flash_attention/ops.h>
#include <torch/library.h>

#include "ops/autocast_inputs.h"
#include "ops/memory_checks.h"
#include "ops/operator.h"

namespace flash {
namespace {

at::Tensor lower(const at::Tensor& t) {
  check_memory({t});
  return at::autocast::cached_cast(at::autocast::get_autocast_dtype(at::kCPU), t,
                                   c10::DeviceType::CPU);
}

}  // namespace

AutocastInputs::AutocastInputs(const at::Tensor& query, const at::Tensor& key,
                               const at::Tensor& value, const CallOptions& options)
    : query(lower(query)), key(lower(key)), value(lower(value)), options(options) {
  for (std::optional<at::Tensor>* t :
       {&this->options.bias, &this->options.alibi_slopes, &this->options.sinks}) {
    const bool as_is =
        !t->has_value() || !(*t)->is_floating_point() || is_dtype_beside(this->query, **t);
    if (!as_is) *t = lower(**t);
  }
}

namespace {

at::Tensor attention_autocast(const at::Tensor& query, const at::Tensor& key,
                              const at::Tensor& value, const CallOptions& options) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::DispatchKey::AutocastCPU);
  const AutocastInputs call(query, key, value, options);
  return call_attention(call.query, call.key, call.value, call.options);
}

LseResult attention_with_lse_autocast(const at::Tensor& query, const at::Tensor& key,
                                      const at::Tensor& value, const CallOptions& options) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::DispatchKey::AutocastCPU);
  const AutocastInputs call(query, key, value, options);
  return call_attention_with_lse(call.query, call.key, call.value, call.options);
}

}  // namespace
}  // namespace flash

TORCH_LIBRARY_IMPL(flash, AutocastCPU, m) {
  using namespace flash;
  m.impl("attention", AttentionCall<at::Tensor>::call<attention_autocast>);
  m.impl("attention_with_lse", AttentionCall<LseResult>::call<attention_with_lse_autocast>);
}
