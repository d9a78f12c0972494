// The O(L S) reference: plain ATen, every derivative, the semantics of the operator to the letter.

#include <ATen/ATen.h>
#include <flash_attention/ops.h>
#include <torch/library.h>

#include <limits>

#include "ops/operator.h"

namespace flash {
namespace {

// [B, Hk, S, D] repeated to the heads of query: head h reads head h / (H / Hk).
at::Tensor repeat_heads(const at::Tensor& t, int64_t heads) {
  const int64_t own = t.size(1);
  return own == heads || own == 0 ? t : t.repeat_interleave(heads / own, 1);
}

// Aligned at the right of [B, H, L, …], with the head dimension that a 3-D call leaves out.
at::Tensor with_head_dimension(const at::Tensor& t, const Sizes& sizes, int64_t rank) {
  return missing_head_dimension(sizes, t.dim(), rank) == 1 ? t.unsqueeze(1) : t;
}

// How many keys a key is behind a query's position; broadcasts to scores.
at::Tensor distances(const at::Tensor& scores, const std::optional<at::Tensor>& query_positions,
                     const Sizes& sizes) {
  const int64_t queries = scores.size(-2), keys = scores.size(-1);
  const auto options = scores.options().dtype(at::kLong);
  const at::Tensor key = at::arange(keys, options);
  const at::Tensor position = query_positions.has_value()
                                  ? with_head_dimension(*query_positions, sizes, 3)
                                  : at::arange(queries, options) + (keys - queries);
  // Below this the difference would overflow.
  const int64_t lowest = std::numeric_limits<int64_t>::min() + keys;
  return key - position.clamp_min(lowest).unsqueeze(-1);
}

// True where a key lies outside of the window; undefined where there is none.
at::Tensor outside(const at::Tensor& distance, const Window& window) {
  at::Tensor result;
  if (window.right >= 0) result = distance > window.right;
  if (window.left >= 0) {
    const at::Tensor before = distance < -window.left;
    result = result.defined() ? result.logical_or(before) : before;
  }
  return result;
}

}  // namespace

at::Tensor standard_attention(const at::Tensor& query, const at::Tensor& key,
                              const at::Tensor& value, const AttentionOptions& o) {
  const Sizes sizes = check_attention(query, key, value, call_options(o));
  const auto as_4d = [](const at::Tensor& t) { return t.dim() == 3 ? t.unsqueeze(1) : t; };
  const at::Tensor q = as_4d(query);
  const int64_t heads = q.size(1);
  const at::Tensor k = repeat_heads(as_4d(key), heads);
  const at::Tensor v = repeat_heads(as_4d(value), heads);

  const double minus_inf = -std::numeric_limits<double>::infinity();
  at::Tensor scores = q.matmul(k.transpose(-2, -1)) * resolve_scale(o.scale(), q.size(-1));
  if (o.softcap() > 0) scores = (scores / o.softcap()).tanh() * o.softcap();
  const Window window = {o.window().left, o.causal() ? 0 : o.window().right};
  at::Tensor distance;
  if (window.left >= 0 || window.right >= 0 || o.alibi_slopes().has_value()) {
    distance = distances(scores, o.query_positions(), sizes);
  }
  if (o.alibi_slopes().has_value()) {
    scores = scores - o.alibi_slopes()->unsqueeze(-1).unsqueeze(-1) * distance.abs();
  }
  at::Tensor excluded;  // true where a query may not attend, so that a NaN there goes no further
  if (o.bias().has_value()) {
    const at::Tensor bias = with_head_dimension(*o.bias(), sizes, 4);
    const bool is_mask = bias.scalar_type() == at::kBool;
    excluded = is_mask ? bias.logical_not() : bias == minus_inf;
    if (!is_mask) scores = scores + bias;
  }
  if (window.left >= 0 || window.right >= 0) {
    const at::Tensor beyond = outside(distance, window);
    excluded = excluded.defined() ? excluded.logical_or(beyond) : beyond;
  }
  if (excluded.defined()) scores = scores.masked_fill(excluded, minus_inf);
  at::Tensor weights;
  if (o.sinks().has_value()) {
    const at::Tensor sink =
        o.sinks()->unsqueeze(-1).unsqueeze(-1).expand({scores.size(0), heads, scores.size(2), 1});
    weights = at::cat({scores, sink}, -1).softmax(-1).narrow(-1, 0, scores.size(-1));
  } else {
    weights = scores.softmax(-1);
  }
  // The softmax of a row with nothing to attend is 0 / 0; here it is 0.
  if (excluded.defined()) weights = weights.masked_fill(excluded, 0.0);
  if (o.dropout() > 0) {
    const at::Tensor kept =
        dropout_mask(q.size(0), heads, q.size(2), k.size(2), o.dropout()).to(q.device());
    weights = o.dropout() < 1 ? (weights * kept) / (1 - o.dropout()) : weights * 0;
  }
  const at::Tensor out = weights.matmul(v);
  return query.dim() == 3 ? out.squeeze(1) : out;
}

at::Tensor standard_attention(const at::Tensor& query, const at::Tensor& key,
                              const at::Tensor& value, double scale, bool causal) {
  return standard_attention(query, key, value, AttentionOptions().scale(scale).causal(causal));
}

}  // namespace flash

TORCH_LIBRARY_FRAGMENT(flash, m) {
  m.def(
      "standard_attention(Tensor query, Tensor key, Tensor value, *, Tensor? bias=None, "
      "bool causal=False, Tensor? query_positions=None, int[2]? window=None, "
      "Tensor? alibi_slopes=None, float softcap=0.0, Tensor? sinks=None, float? scale=None, "
      "float dropout=0.0) -> Tensor",
      [](const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
         const std::optional<at::Tensor>& bias, bool causal,
         const std::optional<at::Tensor>& query_positions, at::OptionalIntArrayRef window,
         const std::optional<at::Tensor>& alibi_slopes, double softcap,
         const std::optional<at::Tensor>& sinks, std::optional<double> scale, double dropout) {
        const flash::CallOptions o =
            flash::pack_options(bias, causal, query_positions, window, alibi_slopes, softcap, sinks,
                                scale, dropout, /*block_size=*/64, /*use_simd=*/true);
        return flash::standard_attention(query, key, value,
                                         flash::AttentionOptions()
                                             .bias(bias)
                                             .causal(causal)
                                             .query_positions(query_positions)
                                             .window(o.window)
                                             .alibi_slopes(alibi_slopes)
                                             .softcap(softcap)
                                             .sinks(sinks)
                                             .scale(scale)
                                             .dropout(dropout));
      });
}
