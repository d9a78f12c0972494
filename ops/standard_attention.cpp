// flash::standard_attention: the O(L S) reference in plain ATen operators.

#include <ATen/ATen.h>
#include <flash_attention/ops.h>
#include <torch/library.h>

#include <string>

#include "ops/attention_checks.h"
#include "ops/math_attention.h"
#include "ops/operator.h"

namespace flash {

at::Tensor standard_attention(const at::Tensor& query, const at::Tensor& key,
                              const at::Tensor& value, const AttentionOptions& options) {
  const Sizes sizes = check_attention(query, key, value, options);
  const at::Tensor q = with_heads(query), k = with_heads(key);
  const int64_t queries = q.size(2);
  std::optional<at::Tensor> keep;
  if (options.dropout() > 0) {
    keep = dropout_mask(q.size(0), q.size(1), queries, k.size(2), options.dropout()).to(q.device());
  }
  const at::Tensor out =
      math_attention(q, k, with_heads(value), options_of_rows(options, sizes, q, 0, queries), keep,
                     /*with_lse=*/false)
          .out;
  return query.dim() == 3 ? out.squeeze(1) : out;
}

at::Tensor standard_attention(const at::Tensor& query, const at::Tensor& key,
                              const at::Tensor& value, double scale, bool causal) {
  return standard_attention(query, key, value, AttentionOptions().scale(scale).causal(causal));
}

namespace {

/// Without the options of the kernels.
using StandardOperator =
    Operator<at::Tensor, Types<const at::Tensor&, const at::Tensor&, const at::Tensor&>,
             ScoreOptionArguments, Types<>>;
constexpr StandardOperator::Signature* kKernel = StandardOperator::kernel<standard_attention>;

}  // namespace
}  // namespace flash

TORCH_LIBRARY_FRAGMENT(flash, m) {
  const std::string schema = "standard_attention(Tensor query, Tensor key, Tensor value, *, " +
                             flash::score_options_schema() + ") -> Tensor";
  m.def(schema.c_str(), flash::kKernel);
}

// torch.vmap decomposes it, since its parts have batching rules. Before 2.15 torch did so by
// default.
TORCH_LIBRARY_IMPL(flash, FuncTorchBatchedDecomposition, m) {
  m.impl("standard_attention", flash::kKernel);
}
