#include "ops/results.h"

#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>

#include "ops/dtypes.h"

namespace flash {
namespace {

// Whether the heads of a row of `t` are in order in memory, as in [B, L, H, D] or a slice of its
// last dimension. Then the caller may expect to merge the heads of the result by a view.
bool is_heads_last(const at::Tensor& t) {
  if (t.dim() != 4 || t.is_contiguous()) return false;
  const c10::SymInt of_heads = t.sym_stride(1);
  return TORCH_GUARD_OR_FALSE(t.sym_stride(3).sym_eq(1)) &&
         TORCH_GUARD_OR_FALSE(of_heads.sym_gt(0)) &&
         TORCH_GUARD_OR_FALSE(of_heads.sym_lt(t.sym_stride(2)));
}

}  // namespace

at::Tensor allocate(c10::SymIntArrayRef sizes, const at::Tensor& like,
                    std::optional<at::ScalarType> dtype) {
  const at::ScalarType type = dtype.value_or(like.scalar_type());
  // Another trip through the dispatcher would take as long as the allocation.
  if (like.is_cpu()) {
    return at::detail::empty_cpu(C10_AS_INTARRAYREF_SLOW(sizes), type);
  }
  return at::empty_symint(sizes, like.options().dtype(type));
}

at::Tensor empty_out(const at::Tensor& query, const at::Tensor& value, const Sizes& s,
                     std::optional<at::ScalarType> dtype) {
  if (!s.has_head_dimension) return allocate({s.batch, s.queries, s.value_dim}, query, dtype);
  if (is_heads_last(query)) {
    return allocate({s.batch, s.queries, s.heads, s.value_dim}, value, dtype).transpose(1, 2);
  }
  return allocate({s.batch, s.heads, s.queries, s.value_dim}, query, dtype);
}

at::Tensor empty_row_stats(const at::Tensor& query, const Sizes& s) {
  const at::ScalarType dtype = compute_dtype(query.scalar_type());
  if (!s.has_head_dimension) return allocate({2, s.batch, s.queries}, query, dtype);
  return allocate({2, s.batch, s.heads, s.queries}, query, dtype);
}

at::Tensor empty_seed(const at::Tensor& query, double dropout) {
  return allocate({dropout > 0 ? 1 : 0}, query, at::kLong);
}

at::Tensor empty_grad(bool needed, const at::Tensor& input, std::optional<at::ScalarType> dtype) {
  if (!needed) return allocate({0}, input, dtype);
  const auto sizes = input.sym_sizes();
  if (is_heads_last(input)) {
    return allocate({sizes[0], sizes[2], sizes[1], sizes[3]}, input, dtype).transpose(1, 2);
  }
  return allocate(sizes, input, dtype);
}

at::Tensor log_sum_exp(const at::Tensor& row_stats) {
  return row_stats.select(0, 1).log().add_(row_stats.select(0, 0));
}

}  // namespace flash
