// Where a call enters: the schemas of flash::attention and flash::attention_with_lse, and their C++
// functions.

#include <flash_attention/ops.h>
#include <torch/library.h>

#include <string>

#include "ops/operator.h"

namespace flash {

at::Tensor attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                     const AttentionOptions& options) {
  static const auto op = AttentionOperator<at::Tensor>::find("flash::attention");
  return call_with_options(
      options, [&](const auto&... each) { return op.call(query, key, value, each...); });
}

LseResult attention_with_lse(const at::Tensor& query, const at::Tensor& key,
                             const at::Tensor& value, const AttentionOptions& options) {
  static const auto op = AttentionOperator<LseResult>::find("flash::attention_with_lse");
  return call_with_options(
      options, [&](const auto&... each) { return op.call(query, key, value, each...); });
}

}  // namespace flash

TORCH_LIBRARY(flash, m) {
  const std::string arguments = "(Tensor query, Tensor key, Tensor value, *, " +
                                flash::all_options_schema(flash::SchemaDefaults::kWith) + ")";
  const std::vector<at::Tag> tags = {at::Tag::pt2_compliant_tag, at::Tag::nondeterministic_seeded};
  m.def(("attention" + arguments + " -> Tensor").c_str(), tags);
  m.def(("attention_with_lse" + arguments + " -> (Tensor out, Tensor lse)").c_str(), tags);
}
