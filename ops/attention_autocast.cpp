// AutocastCPU: the kernels compute in float32, so under autocast everything is brought to it.

#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>
#include <flash_attention/ops.h>
#include <torch/library.h>

#include "ops/operator.h"

namespace flash {
namespace {

at::Tensor to_float(const at::Tensor& t) {
  return at::autocast::cached_cast(at::kFloat, t, c10::DeviceType::CPU);
}

CallOptions options_in_float(CallOptions o) {
  for (std::optional<at::Tensor>* t : {&o.bias, &o.alibi_slopes, &o.sinks}) {
    if (t->has_value() && (*t)->is_floating_point()) *t = to_float(**t);
  }
  return o;
}

at::Tensor attention_autocast(const at::Tensor& query, const at::Tensor& key,
                              const at::Tensor& value, const CallOptions& options) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::DispatchKey::AutocastCPU);
  return call_attention(to_float(query), to_float(key), to_float(value), options_in_float(options));
}

std::tuple<at::Tensor, at::Tensor> attention_with_lse_autocast(const at::Tensor& query,
                                                               const at::Tensor& key,
                                                               const at::Tensor& value,
                                                               const CallOptions& options) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::DispatchKey::AutocastCPU);
  return call_attention_with_lse(to_float(query), to_float(key), to_float(value),
                                 options_in_float(options));
}

}  // namespace
}  // namespace flash

TORCH_LIBRARY_IMPL(flash, AutocastCPU, m) {
  using namespace flash;
  m.impl("attention", AttentionCall<at::Tensor>::call<attention_autocast>);
  m.impl("attention_with_lse", AttentionCall<LseResult>::call<attention_with_lse_autocast>);
}
