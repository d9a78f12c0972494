#include "ops/math_attention.h"

#include <ATen/ATen.h>

#include <limits>

#include "ops/dtypes.h"

namespace flash {
namespace {

constexpr double kMinusInf = -std::numeric_limits<double>::infinity();

// [B, Hk, S, D] -> [B, H, S, D]: head h of the result is head h / (H / Hk) of `t`.
at::Tensor repeat_heads(const at::Tensor& t, int64_t heads) {
  const int64_t own = t.size(1);
  return own == heads || own == 0 ? t : t.repeat_interleave(heads / own, 1);
}

// `t`, which broadcasts to [B, H, L, …], with the head dimension that a 3-D call lacks.
at::Tensor with_head_dimension(const at::Tensor& t, const Sizes& sizes, int64_t rank) {
  return missing_head_dimension(sizes, t.dim(), rank) == 1 ? t.unsqueeze(1) : t;
}

// `t` for queries first … first + count - 1, which are its dimension `dim` unless it broadcasts.
at::Tensor cut_to_rows(const at::Tensor& t, int64_t dim, int64_t queries, int64_t first,
                       int64_t count) {
  const bool counts = t.dim() >= -dim && t.size(dim) == queries && queries != 1;
  return counts ? t.narrow(dim, first, count) : t;
}

// True where a key lies outside the window; undefined without a window.
at::Tensor outside(const at::Tensor& distance, const Window& window) {
  at::Tensor result;
  if (window.right >= 0) result = distance > window.right;
  if (window.left >= 0) {
    const at::Tensor before = distance < -window.left;
    result = result.defined() ? result.logical_or(before) : before;
  }
  return result;
}

// log(sum(exp(scores))) over the last dimension. Not at::logsumexp: its derivative is
// exp(score - lse), which loses the digits of log(sum) if |lse| is large.
at::Tensor log_sum_exp_of_scores(const at::Tensor& scores) {
  if (scores.size(-1) == 0)
    return at::full(scores.sizes().slice(0, 3), kMinusInf, scores.options());
  at::Tensor largest = scores.detach().amax(-1, /*keepdim=*/true);
  largest = largest.masked_fill(largest == kMinusInf, 0.0);
  return (scores - largest).exp().sum(-1).log() + largest.squeeze(-1);
}

}  // namespace

at::Tensor with_heads(const at::Tensor& t) { return t.dim() == 3 ? t.unsqueeze(1) : t; }

AttentionOptions options_of_rows(const AttentionOptions& options, const Sizes& sizes,
                                 const at::Tensor& like, int64_t first, int64_t count) {
  AttentionOptions o = options;
  const int64_t queries = sizes.queries.expect_int(), keys = sizes.keys.expect_int();
  if (o.bias().has_value()) {
    o.bias() = cut_to_rows(with_head_dimension(*o.bias(), sizes, 4), -2, queries, first, count);
  }
  o.query_positions() =
      o.query_positions().has_value()
          ? cut_to_rows(with_head_dimension(*o.query_positions(), sizes, 3), -1, queries, first,
                        count)
          : at::arange(first, first + count, like.options().dtype(at::kLong)) + (keys - queries);
  return o;
}

MathResult math_attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                          const AttentionOptions& options, const std::optional<at::Tensor>& keep,
                          bool with_lse) {
  const AttentionOptions o = in_compute_dtype(options);
  const int64_t heads = query.size(1), keys = key.size(2);
  const at::Tensor q = in_compute_dtype(query);
  const at::Tensor k = repeat_heads(in_compute_dtype(key), heads);
  const at::Tensor v = repeat_heads(in_compute_dtype(value), heads);
  at::Tensor scores = q.matmul(k.transpose(-2, -1)) * resolve_scale(o.scale(), q.size(-1));
  if (o.softcap() > 0) scores = (scores / o.softcap()).tanh() * o.softcap();

  const Window window = {o.window().left, o.causal() ? 0 : o.window().right};
  at::Tensor distance;  // position of the key - position of the query
  if (window.left >= 0 || window.right >= 0 || o.alibi_slopes().has_value()) {
    const auto key_positions = at::arange(keys, query.options().dtype(at::kLong));
    // The difference of a lower position would overflow.
    const int64_t lowest = std::numeric_limits<int64_t>::min() + keys;
    distance = key_positions - o.query_positions()->clamp_min(lowest).unsqueeze(-1);
  }
  if (o.alibi_slopes().has_value()) {
    scores = scores - o.alibi_slopes()->unsqueeze(-1).unsqueeze(-1) * distance.abs();
  }
  at::Tensor masked;  // true where a key is masked, so that a NaN there does not spread
  if (o.bias().has_value()) {
    const bool is_mask = o.bias()->scalar_type() == at::kBool;
    masked = is_mask ? o.bias()->logical_not() : *o.bias() == kMinusInf;
    if (!is_mask) scores = scores + *o.bias();
  }
  if (window.left >= 0 || window.right >= 0) {
    const at::Tensor beyond = outside(distance, window);
    masked = masked.defined() ? masked.logical_or(beyond) : beyond;
  }
  at::Tensor sink, filled = scores;
  if (o.sinks().has_value()) {
    sink =
        o.sinks()->unsqueeze(-1).unsqueeze(-1).expand({scores.size(0), heads, scores.size(2), 1});
  }
  if (masked.defined()) {
    scores = scores.masked_fill(masked, kMinusInf);
    // The softmax of a row with every key masked is 0 / 0. Its weights and all of their derivatives
    // are 0 here: zeros replace its scores.
    filled = scores.masked_fill(masked.expand_as(scores).all(-1, /*keepdim=*/true), 0.0);
  }
  at::Tensor weights = sink.defined() ? at::cat({filled, sink}, -1).softmax(-1).narrow(-1, 0, keys)
                                      : filled.softmax(-1);
  if (masked.defined()) weights = weights.masked_fill(masked, 0.0);
  if (keep.has_value()) {
    weights = o.dropout() < 1 ? (weights * *keep) / (1 - o.dropout()) : weights * 0;
  }
  MathResult result = {in_dtype(weights.matmul(v), query.scalar_type()), {}};
  if (with_lse)
    result.lse = log_sum_exp_of_scores(sink.defined() ? at::cat({scores, sink}, -1) : scores);
  return result;
}

}  // namespace flash
