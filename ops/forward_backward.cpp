#include "ops/forward_backward.h"

#include <torch/library.h>

#include <string>

namespace flash {

ForwardResult call_forward(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                           const AttentionOptions& options) {
  static const auto op = ForwardOperator::find("flash::_forward");
  return call_with_options(
      options, [&](const auto&... each) { return op.call(query, key, value, each...); });
}

BackwardResult call_backward(const at::Tensor& grad_out, const std::optional<at::Tensor>& grad_lse,
                             const at::Tensor& query, const at::Tensor& key,
                             const at::Tensor& value, const ForwardResult& saved,
                             const AttentionOptions& options, const Needed& needed) {
  static const auto op = BackwardOperator::find("flash::_backward");
  // Clang captures structured bindings only from version 16 on.
  const at::Tensor &out = std::get<0>(saved), &row_stats = std::get<1>(saved),
                   &seed = std::get<2>(saved);
  return call_with_options(options, [&](const auto&... each) {
    return op.call(grad_out, grad_lse, query, key, value, out, row_stats, seed, each..., needed);
  });
}

}  // namespace flash

TORCH_LIBRARY_FRAGMENT(flash, m) {
  using flash::SchemaDefaults;
  const std::string forward = "_forward(Tensor query, Tensor key, Tensor value, *, " +
                              flash::all_options_schema(SchemaDefaults::kWith) +
                              ") -> (Tensor out, Tensor row_stats, Tensor seed)";
  m.def(forward.c_str(), {at::Tag::pt2_compliant_tag, at::Tag::nondeterministic_seeded});
  const std::string backward =
      "_backward(Tensor grad_out, Tensor? grad_lse, Tensor query, Tensor key, Tensor value, "
      "Tensor out, Tensor row_stats, Tensor seed, " +
      flash::all_options_schema(SchemaDefaults::kWithout) +
      ", bool[6] needed) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)";
  m.def(backward.c_str(), {at::Tag::pt2_compliant_tag});
}
