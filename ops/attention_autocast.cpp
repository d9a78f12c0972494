// AutocastCPU: casts the tensors of a call to autocast's lower precision, as torch's own attention
// does.

#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>
#include <flash_attention/ops.h>
#include <torch/library.h>

#include "ops/attention_checks.h"
#include "ops/autocast_inputs.h"
#include "ops/operator.h"
#include "ops/storage_checks.h"

namespace flash {
namespace {

at::Tensor in_lower_precision(const at::Tensor& t) {
  check_storage({t});
  return at::autocast::cached_cast(at::autocast::get_autocast_dtype(at::kCPU), t,
                                   c10::DeviceType::CPU);
}

}  // namespace

AutocastInputs::AutocastInputs(const at::Tensor& query, const at::Tensor& key,
                               const at::Tensor& value, const AttentionOptions& options)
    : query(in_lower_precision(query)),
      key(in_lower_precision(key)),
      value(in_lower_precision(value)),
      options(options) {
  for (std::optional<at::Tensor>* t : differentiable_options(this->options)) {
    const bool as_is =
        !t->has_value() || !(*t)->is_floating_point() || is_option_dtype(this->query, **t);
    if (!as_is) *t = in_lower_precision(**t);
  }
}

namespace {

at::Tensor attention_autocast(const at::Tensor& query, const at::Tensor& key,
                              const at::Tensor& value, const AttentionOptions& options) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::DispatchKey::AutocastCPU);
  const AutocastInputs call(query, key, value, options);
  return attention(call.query, call.key, call.value, call.options);
}

LseResult attention_with_lse_autocast(const at::Tensor& query, const at::Tensor& key,
                                      const at::Tensor& value, const AttentionOptions& options) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::DispatchKey::AutocastCPU);
  const AutocastInputs call(query, key, value, options);
  return attention_with_lse(call.query, call.key, call.value, call.options);
}

}  // namespace
}  // namespace flash

TORCH_LIBRARY_IMPL(flash, AutocastCPU, m) {
  using namespace flash;
  m.impl("attention", AttentionOperator<at::Tensor>::kernel<attention_autocast>);
  m.impl("attention_with_lse", AttentionOperator<LseResult>::kernel<attention_with_lse_autocast>);
}
