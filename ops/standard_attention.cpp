// The O(L S) reference: plain ATen, every derivative, the semantics of the operator to the letter.

#include <ATen/ATen.h>
#include <flash_attention/ops.h>
#include <torch/library.h>

#include "ops/definition.h"
#include "ops/operator.h"

namespace flash {

at::Tensor standard_attention(const at::Tensor& query, const at::Tensor& key,
                              const at::Tensor& value, const AttentionOptions& o) {
  const CallOptions options = call_options(o);
  const Sizes sizes = check_attention(query, key, value, options);
  const at::Tensor q = with_heads(query), k = with_heads(key);
  const int64_t queries = q.size(2);
  std::optional<at::Tensor> keep;
  if (options.dropout > 0) {
    keep = dropout_mask(q.size(0), q.size(1), queries, k.size(2), options.dropout).to(q.device());
  }
  const at::Tensor out =
      define_attention(q, k, with_heads(value), options_of_rows(options, sizes, q, 0, queries),
                       keep, /*with_lse=*/false)
          .out;
  return query.dim() == 3 ? out.squeeze(1) : out;
}

at::Tensor standard_attention(const at::Tensor& query, const at::Tensor& key,
                              const at::Tensor& value, double scale, bool causal) {
  return standard_attention(query, key, value, AttentionOptions().scale(scale).causal(causal));
}

namespace {

at::Tensor standard_attention_of(const at::Tensor& query, const at::Tensor& key,
                                 const at::Tensor& value, const std::optional<at::Tensor>& bias,
                                 bool causal, const std::optional<at::Tensor>& query_positions,
                                 at::OptionalIntArrayRef window,
                                 const std::optional<at::Tensor>& alibi_slopes, double softcap,
                                 const std::optional<at::Tensor>& sinks,
                                 std::optional<double> scale, double dropout) {
  const CallOptions o = pack_options(bias, causal, query_positions, window, alibi_slopes, softcap,
                                     sinks, scale, dropout, /*block_size=*/64, /*use_simd=*/true);
  return standard_attention(query, key, value,
                            AttentionOptions()
                                .bias(bias)
                                .causal(causal)
                                .query_positions(query_positions)
                                .window(o.window)
                                .alibi_slopes(alibi_slopes)
                                .softcap(softcap)
                                .sinks(sinks)
                                .scale(scale)
                                .dropout(dropout));
}

}  // namespace
}  // namespace flash

TORCH_LIBRARY_FRAGMENT(flash, m) {
  m.def(
      "standard_attention(Tensor query, Tensor key, Tensor value, *, Tensor? bias=None, "
      "bool causal=False, Tensor? query_positions=None, int[2]? window=None, "
      "Tensor? alibi_slopes=None, float softcap=0.0, Tensor? sinks=None, float? scale=None, "
      "float dropout=0.0) -> Tensor",
      flash::standard_attention_of);
}

// torch.vmap decomposes it, too: its parts have batching rules. Before 2.15 torch did so unasked.
TORCH_LIBRARY_IMPL(flash, FuncTorchBatchedDecomposition, m) {
  m.impl("standard_attention", flash::standard_attention_of);
}
