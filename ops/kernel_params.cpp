#include "ops/kernel_params.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <limits>

#include "ops/dtypes.h"

namespace flash {
namespace {

/// Strides of [batch, heads, rows, columns]; a 3-D tensor is one head.
Strides strides_of(const at::Tensor& t) {
  return t.dim() == 4 ? Strides{t.stride(0), t.stride(1), t.stride(2)}
                      : Strides{t.stride(0), 0, t.stride(1)};
}

}  // namespace

ConstRows rows_of(const at::Tensor& t) { return {t.const_data_ptr(), strides_of(t)}; }
MutableRows mutable_rows_of(const at::Tensor& t) { return {t.mutable_data_ptr(), strides_of(t)}; }

Shape shape_of(const Sizes& s) {
  const auto size = [](const c10::SymInt& n) { return n.expect_int(); };
  const Shape shape = {size(s.batch),   size(s.heads), size(s.key_heads), size(s.value_heads),
                       size(s.queries), size(s.keys),  size(s.head_dim),  size(s.value_dim)};
  // A tensor without columns takes no memory however many rows it has, but their statistics do.
  constexpr int64_t kMostRows = std::numeric_limits<int64_t>::max() / (2 * sizeof(double));
  int64_t rows;
  const bool fits = !__builtin_mul_overflow(shape.batch, shape.heads, &rows) &&
                    !__builtin_mul_overflow(rows, shape.queries, &rows) && rows <= kMostRows;
  TORCH_CHECK_VALUE(fits, "flash::attention: expected query of at most ", kMostRows,
                    " rows, got batch ", shape.batch, ", heads ", shape.heads, ", length ",
                    shape.queries);
  return shape;
}

void broadcast_strides(const at::Tensor& t, const Sizes& sizes, int64_t rank, int64_t* strides) {
  const int64_t inserted = missing_head_dimension(sizes, t.dim(), rank);
  std::fill(strides, strides + rank, 0);
  int64_t to = rank - 1;
  for (int64_t from = t.dim() - 1; from >= 0; --from, --to) {
    // [B, L, S] has no head dimension, which is at index 1.
    if (inserted >= 0 && to == 1) --to;
    if (t.size(from) != 1) strides[to] = t.stride(from);
  }
}

Storage storage_of(at::ScalarType dtype) {
  if (dtype == at::kBFloat16) return Storage::kBFloat16;
  return dtype == at::kHalf ? Storage::kHalf : Storage::kNative;
}

AttentionOptions kernel_options(const AttentionOptions& options) {
  AttentionOptions o = options;
  o.alibi_slopes() = in_compute_dtype(o.alibi_slopes());
  o.sinks() = in_compute_dtype(o.sinks());
  return o;
}

ScoreParams score_params(const AttentionOptions& o, const Sizes& sizes, int64_t head_dim,
                         int64_t seed) {
  ScoreParams p = {};
  p.scale = resolve_scale(o.scale(), head_dim);
  // The kernels flush denormals, and a softcap of 0 would mean none.
  p.softcap = o.softcap() > 0 ? std::max(o.softcap(), std::numeric_limits<double>::min()) : 0.0;
  if (o.alibi_slopes().has_value()) {
    const at::Tensor& slopes = *o.alibi_slopes();
    p.alibi_slopes = slopes.const_data_ptr();
    p.slope_strides[0] = slopes.dim() == 2 ? slopes.stride(0) : 0;
    p.slope_strides[1] = slopes.stride(-1);
  }
  p.window_left = o.window().left;
  p.window_right = o.causal() ? 0 : o.window().right;
  if (o.sinks().has_value()) {
    p.sinks = o.sinks()->const_data_ptr();
    p.sink_strides[0] = o.sinks()->dim() == 2 ? o.sinks()->stride(0) : 0;
    p.sink_strides[1] = o.sinks()->stride(-1);
  }
  if (o.bias().has_value()) {
    p.bias_kind = o.bias()->scalar_type() == at::kBool ? BiasKind::kBoolean : BiasKind::kAdditive;
    p.bias_storage = storage_of(o.bias()->scalar_type());
    p.bias = o.bias()->const_data_ptr();
    broadcast_strides(*o.bias(), sizes, 4, p.bias_strides);
  }
  if (o.query_positions().has_value()) {
    p.positions = o.query_positions()->const_data_ptr<int64_t>();
    broadcast_strides(*o.query_positions(), sizes, 3, p.position_strides);
  }
  p.dropout = o.dropout();
  p.dropout_seed = static_cast<uint64_t>(seed);
  return p;
}

}  // namespace flash
