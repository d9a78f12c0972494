// torch.vmap: the mapped dimension is merged into the batch, so that N calls become one.

#include <ATen/ATen.h>
#include <ATen/functorch/BatchedTensorImpl.h>
#include <ATen/functorch/DynamicLayer.h>
#include <ATen/functorch/PlumbingHelper.h>
#include <ATen/functorch/VmapInterpreter.h>
#include <torch/library.h>

#include "ops/backward_checks.h"
#include "ops/dtypes.h"
#include "ops/forward_backward.h"

namespace flash {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

/// The innermost vmap, and how the tensors of a call are merged and split for it.
class Mapped {
 public:
  /// For a call that has been checked; `query` is one of `tensors`.
  Mapped(const Tensor& query, std::initializer_list<OptionalTensor> tensors,
         const AttentionOptions& o)
      : batch_(query.size(0)) {
    const auto layer = at::functorch::maybeCurrentDynamicLayer();
    level_ = layer->layerId();
    randomness_ = at::functorch::VmapInterpreterPtr(&layer->interpreter()).randomness();
    for (const OptionalTensor& t : tensors) see(t);
    for_each_tensor(o, [&](const OptionalTensor& t) { see(t); });
  }

  /// Whether any tensor of the call is mapped; whether this one is.
  bool any() const { return count_ >= 0; }
  bool has(const Tensor& t) const { return at::functorch::isBatchedAtLevel(t, level_); }

  void check_randomness(double dropout) const {
    if (dropout == 0) return;
    TORCH_CHECK_VALUE(randomness_ != at::functorch::RandomnessType::Error,
                      "flash::attention: expected vmap(..., randomness='different') around a call "
                      "with dropout, got randomness='error'");
    TORCH_CHECK_NOT_IMPLEMENTED(
        randomness_ != at::functorch::RandomnessType::Same,
        "flash::attention: expected vmap(..., randomness='different') around "
        "a call with dropout, got 'same', which is not implemented");
  }

  /// [B, …] -> [N B, …], where `front` dimensions precede B.
  Tensor merge(const Tensor& t, int64_t front = 0) const {
    return with_mapped(t, front).flatten(front, front + 1);
  }

  /// The same for an option that broadcasts, of at most `rank` dimensions, the first of which is 1
  /// or `batch`. An option that all N calls share is left alone, unless each of them has its `own`
  /// gradient.
  OptionalTensor merge(const OptionalTensor& t, int64_t rank, bool own) const {
    if (!t.has_value()) return t;
    const int64_t missing = std::max<int64_t>(0, rank - t->dim());
    const bool is_shared = missing > 0 || t->size(0) == 1;
    if (!has(*t) && is_shared && !own) return t;
    Tensor all = with_mapped(*t, 0);
    // The gradient of a 16-bit option may be a sum over the batch, which must be rounded only once.
    if (own) all = in_compute_dtype(all);
    for (int64_t i = 0; i < missing; ++i) all = all.unsqueeze(1);
    auto sizes = all.sizes().vec();
    sizes[1] = batch_;
    return all.expand(sizes).flatten(0, 1);
  }

  /// The inverse of `merge`, for a result.
  Tensor split(const Tensor& t, int64_t front = 0) const {
    return batched(t.unflatten(front, {count_, batch_}), front);
  }

  /// The inverse of `merge`, for the gradient of `option`.
  Tensor split_gradient(const Tensor& gradient, const Tensor& option, int64_t rank) const {
    const at::IntArrayRef sizes = option.sizes();
    Tensor each = gradient.unflatten(0, {count_, batch_});
    const bool has_batch = static_cast<int64_t>(sizes.size()) == rank && sizes[0] != 1;
    if (!has_batch) each = each.sum(1, /*keepdim=*/true);
    std::vector<int64_t> target = {count_};
    target.insert(target.end(), sizes.begin(), sizes.end());
    return batched(in_dtype(each.reshape(target), option.scalar_type()), 0);
  }

 private:
  void see(const OptionalTensor& t) {
    if (!t.has_value() || !t->defined()) return;
    const auto [value, dim] = at::functorch::unwrapTensorAtLevel(*t, level_);
    if (dim.has_value()) count_ = value.size(*dim);
  }

  Tensor with_mapped(const Tensor& t, int64_t at) const {
    const auto [value, dim] = at::functorch::unwrapTensorAtLevel(t, level_);
    if (dim.has_value()) return value.movedim(*dim, at);
    auto sizes = value.sizes().vec();
    sizes.insert(sizes.begin() + at, count_);
    return value.unsqueeze(at).expand(sizes);
  }

  Tensor batched(const Tensor& t, int64_t dim) const {
    return at::functorch::makeBatched(t, dim, level_);
  }

  int64_t level_;
  int64_t batch_;  // of one of the calls
  int64_t count_ = -1;
  at::functorch::RandomnessType randomness_;
};

AttentionOptions merge_options(const Mapped& mapped, const Tensor& query,
                               const AttentionOptions& options, const Needed& own = {}) {
  const int64_t rank = query.dim();
  AttentionOptions o = options;
  // A bias may have a head dimension even if query has none.
  const int64_t bias_rank = o.bias().has_value() ? std::max(rank, o.bias()->dim()) : rank;
  o.bias() = mapped.merge(o.bias(), bias_rank, own[3]);
  o.query_positions() = mapped.merge(o.query_positions(), rank - 1, false);
  o.alibi_slopes() = mapped.merge(o.alibi_slopes(), 2, own[4]);
  o.sinks() = mapped.merge(o.sinks(), 2, own[5]);
  return o;
}

Tensor attention_vmap(const Tensor& query, const Tensor& key, const Tensor& value,
                      const AttentionOptions& options) {
  const c10::impl::ExcludeDispatchKeyGuard below(c10::DispatchKey::FuncTorchBatched);
  check_attention(query, key, value, options);
  const Mapped mapped(query, {query, key, value}, options);
  if (!mapped.any()) return attention(query, key, value, options);
  mapped.check_randomness(options.dropout());
  return mapped.split(attention(mapped.merge(query), mapped.merge(key), mapped.merge(value),
                                merge_options(mapped, query, options)));
}

LseResult attention_with_lse_vmap(const Tensor& query, const Tensor& key, const Tensor& value,
                                  const AttentionOptions& options) {
  const c10::impl::ExcludeDispatchKeyGuard below(c10::DispatchKey::FuncTorchBatched);
  check_attention(query, key, value, options);
  const Mapped mapped(query, {query, key, value}, options);
  if (!mapped.any()) return attention_with_lse(query, key, value, options);
  mapped.check_randomness(options.dropout());
  const auto [out, lse] =
      attention_with_lse(mapped.merge(query), mapped.merge(key), mapped.merge(value),
                         merge_options(mapped, query, options));
  return {mapped.split(out), mapped.split(lse)};
}

ForwardResult forward_vmap(const Tensor& query, const Tensor& key, const Tensor& value,
                           const AttentionOptions& options) {
  const c10::impl::ExcludeDispatchKeyGuard below(c10::DispatchKey::FuncTorchBatched);
  check_attention(query, key, value, options);
  const Mapped mapped(query, {query, key, value}, options);
  if (!mapped.any()) return call_forward(query, key, value, options);
  mapped.check_randomness(options.dropout());
  const auto [out, row_stats, seed] =
      call_forward(mapped.merge(query), mapped.merge(key), mapped.merge(value),
                   merge_options(mapped, query, options));
  return {mapped.split(out), mapped.split(row_stats, 1), seed};
}

BackwardResult backward_vmap(const Tensor& grad_out, const OptionalTensor& grad_lse,
                             const Tensor& query, const Tensor& key, const Tensor& value,
                             const Tensor& out, const Tensor& row_stats, const Tensor& seed,
                             const AttentionOptions& options, Needed needed) {
  const c10::impl::ExcludeDispatchKeyGuard below(c10::DispatchKey::FuncTorchBatched);
  const ForwardResult saved(out, row_stats, seed);
  check_backward(grad_out, grad_lse, query, key, value, saved, options, needed);
  const Mapped mapped(query, {grad_out, grad_lse, query, key, value, out, row_stats}, options);
  TORCH_CHECK_NOT_IMPLEMENTED(!mapped.has(seed),
                              "flash::_backward: expected one seed for all calls of a torch.vmap, "
                              "got one for each, which is not implemented");
  if (!mapped.any()) {
    return call_backward(grad_out, grad_lse, query, key, value, saved, options, needed);
  }
  const AttentionOptions o = merge_options(mapped, query, options, needed);
  const OptionalTensor lse =
      grad_lse.has_value() ? OptionalTensor(mapped.merge(*grad_lse)) : std::nullopt;
  const auto [d_query, d_key, d_value, d_bias, d_slopes, d_sinks] = call_backward(
      mapped.merge(grad_out), lse, mapped.merge(query), mapped.merge(key), mapped.merge(value),
      {mapped.merge(out), mapped.merge(row_stats, 1), seed}, o, needed);
  const auto back = [&](size_t i, const Tensor& g) { return needed[i] ? mapped.split(g) : g; };
  const auto option = [&](size_t i, const Tensor& g, const OptionalTensor& input, int64_t rank) {
    return needed[i] ? mapped.split_gradient(g, *input, rank) : g;
  };
  return {back(0, d_query),
          back(1, d_key),
          back(2, d_value),
          option(3, d_bias, options.bias(),
                 needed[3] ? std::max(query.dim(), options.bias()->dim()) : 0),
          option(4, d_slopes, options.alibi_slopes(), 2),
          option(5, d_sinks, options.sinks(), 2)};
}

}  // namespace
}  // namespace flash

TORCH_LIBRARY_IMPL(flash, FuncTorchBatched, m) {
  using namespace flash;
  m.impl("attention", AttentionOperator<at::Tensor>::kernel<attention_vmap>);
  m.impl("attention_with_lse", AttentionOperator<LseResult>::kernel<attention_with_lse_vmap>);
  m.impl("_forward", ForwardOperator::kernel<forward_vmap>);
  m.impl("_backward", BackwardOperator::kernel<backward_vmap>);
}
