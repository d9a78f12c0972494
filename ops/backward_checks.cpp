#include "ops/backward_checks.h"

#include <c10/util/Exception.h>

namespace flash {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

/// Holds what the forward saved, and the gradients of its results, to the call.
class BackwardChecks {
 public:
  BackwardChecks(const char* op, const Tensor& query) : op_(op), query_(query) {}

  /// Of the dtype of query, or of the one that the kernels compute in.
  void check_rows(const char* name, const Tensor& t, c10::SymIntArrayRef shape) const {
    TORCH_CHECK_TYPE(is_dtype_beside(query_, t), op_, ": expected ", name, " of dtype ",
                     dtypes_beside(query_), " got ", t.scalar_type());
    check_place(name, t, shape);
  }

  void check_dtype(const char* name, const Tensor& t, at::ScalarType dtype,
                   c10::SymIntArrayRef shape) const {
    TORCH_CHECK_TYPE(t.scalar_type() == dtype, op_, ": expected ", name, " of dtype ", dtype,
                     ", got ", t.scalar_type());
    check_place(name, t, shape);
  }

  void check_statistics(const char* name, const Tensor& t, c10::SymIntArrayRef shape) const {
    check_dtype(name, t, compute_dtype(query_.scalar_type()), shape);
  }

  void check_seed(const Tensor& seed, double dropout) const {
    if (dropout > 0) check_dtype("seed", seed, at::kLong, {1});
  }

  void check_needed(const char* name, const OptionalTensor& t, bool needed) const {
    if (!needed) return;
    TORCH_CHECK_VALUE(t.has_value(), op_, ": expected ", name,
                      ", whose gradient is needed, got none");
    TORCH_CHECK_TYPE(t->is_floating_point(), op_, ": expected ", name,
                     ", whose gradient is needed, of a floating dtype, got ", t->scalar_type());
  }

 private:
  void check_place(const char* name, const Tensor& t, c10::SymIntArrayRef shape) const {
    TORCH_CHECK_VALUE(t.device() == query_.device(), op_, ": expected ", name,
                      " on the device of query, ", query_.device(), ", got it on ", t.device());
    TORCH_CHECK_VALUE(t.sym_sizes() == shape, op_, ": expected ", name, " of shape ", shape,
                      ", got ", t.sym_sizes());
  }

  const char* op_;
  const Tensor& query_;
};

}  // namespace

Sizes check_backward(const Tensor& grad_out, const OptionalTensor& grad_lse, const Tensor& query,
                     const Tensor& key, const Tensor& value, const ForwardResult& saved,
                     const CallOptions& o, const Needed& needed) {
  const Sizes s = check_attention(query, key, value, o);
  const auto& [out, row_stats, seed] = saved;
  c10::SymDimVector rows = {s.batch, s.queries};
  if (s.has_head_dimension) rows.insert(rows.begin() + 1, s.heads);
  c10::SymDimVector of_out = rows, of_stats = rows;
  of_out.push_back(s.value_dim);
  of_stats.insert(of_stats.begin(), 2);
  const BackwardChecks checks("flash::_backward", query);
  checks.check_rows("grad_out", grad_out, of_out);
  checks.check_rows("out", out, of_out);
  if (grad_lse.has_value()) checks.check_statistics("grad_lse", *grad_lse, rows);
  checks.check_statistics("row_stats", row_stats, of_stats);
  checks.check_seed(seed, o.dropout);
  checks.check_needed("bias", o.bias, needed[3]);
  checks.check_needed("alibi_slopes", o.alibi_slopes, needed[4]);
  checks.check_needed("sinks", o.sinks, needed[5]);
  return s;
}

void check_packed_backward(const Tensor& grad_out, const Packed& packed,
                           const VarlenForward& saved, const CallOptions& o,
                           const VarlenNeeded& needed) {
  check_packed(packed, o);
  const auto& [out, row_stats, seed] = saved;
  const Tensor& query = packed.query;
  const c10::SymInt heads = query.sym_size(1);
  const c10::SymDimVector of_out = {query.sym_size(0), heads, packed.value.sym_size(2)};
  const BackwardChecks checks("flash::_varlen_backward", query);
  checks.check_rows("grad_out", grad_out, of_out);
  checks.check_rows("out", out, of_out);
  checks.check_statistics("row_stats", row_stats, {2, query.sym_size(0) * heads});
  checks.check_seed(seed, o.dropout);
  checks.check_needed("alibi_slopes", o.alibi_slopes, needed[3]);
  checks.check_needed("sinks", o.sinks, needed[4]);
}

}  // namespace flash
