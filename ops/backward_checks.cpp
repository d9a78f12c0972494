#include "ops/backward_checks.h"

#include <c10/util/Exception.h>

#include "ops/dtypes.h"
#include "ops/storage_checks.h"

namespace flash {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

/// Compares what the forward saved, and the gradients of its results, with the call.
class BackwardChecks {
 public:
  BackwardChecks(const char* op, const Tensor& query) : op_(op), query_(query) {}

  /// In the dtype of query or its `compute_dtype`.
  void check_rows(const char* name, const Tensor& t, c10::SymIntArrayRef shape) const {
    TORCH_CHECK_TYPE(is_option_dtype(query_, t), op_, ": expected ", name, " of dtype ",
                     option_dtypes(query_), " got ", t.scalar_type());
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

  void check_device(const char* name, const Tensor& t) const {
    TORCH_CHECK_VALUE(t.defined(), op_, ": expected ", name, ", got none");
    TORCH_CHECK_VALUE(t.device() == query_.device(), op_, ": expected ", name,
                      " on the device of query, ", query_.device(), ", got it on ", t.device());
  }

 private:
  void check_place(const char* name, const Tensor& t, c10::SymIntArrayRef shape) const {
    check_device(name, t);
    TORCH_CHECK_VALUE(t.sym_sizes() == shape, op_, ": expected ", name, " of shape ", shape,
                      ", got ", t.sym_sizes());
  }

  const char* op_;
  const Tensor& query_;
};

/// [batch, heads, queries] and `width` if given, without heads in a 3-D call.
c10::SymDimVector shape_of_rows(const Sizes& s,
                                const std::optional<c10::SymInt>& width = std::nullopt) {
  c10::SymDimVector shape = {s.batch};
  if (s.has_head_dimension) shape.push_back(s.heads);
  shape.push_back(s.queries);
  if (width.has_value()) shape.push_back(*width);
  return shape;
}

}  // namespace

Sizes check_backward(const Tensor& grad_out, const OptionalTensor& grad_lse, const Tensor& query,
                     const Tensor& key, const Tensor& value, const ForwardResult& saved,
                     const AttentionOptions& o, const Needed& needed, Gradients gradients) {
  const Sizes s = check_attention(query, key, value, o);
  const auto& [out, row_stats, seed] = saved;
  check_storage({grad_out, grad_lse, out, row_stats, seed});
  const c10::SymDimVector rows = shape_of_rows(s), of_out = shape_of_rows(s, s.value_dim);
  c10::SymDimVector of_stats = rows;
  of_stats.insert(of_stats.begin(), 2);
  const BackwardChecks checks("flash::_backward", query);
  checks.check_device("grad_out", grad_out);
  if (grad_lse.has_value()) checks.check_device("grad_lse", *grad_lse);
  if (gradients == Gradients::kReal) {
    checks.check_rows("grad_out", grad_out, of_out);
    if (grad_lse.has_value()) checks.check_statistics("grad_lse", *grad_lse, rows);
  }
  checks.check_rows("out", out, of_out);
  checks.check_statistics("row_stats", row_stats, of_stats);
  checks.check_seed(seed, o.dropout());
  checks.check_needed("bias", o.bias(), needed[3]);
  checks.check_needed("alibi_slopes", o.alibi_slopes(), needed[4]);
  checks.check_needed("sinks", o.sinks(), needed[5]);
  return s;
}

void check_packed_backward(const Tensor& grad_out, const Packed& packed, const VarlenForward& saved,
                           const AttentionOptions& o, const VarlenNeeded& needed,
                           Gradients gradients) {
  check_packed(packed, o);
  const auto& [out, row_stats, seed] = saved;
  check_storage({grad_out, out, row_stats, seed});
  const Tensor& query = packed.query;
  const c10::SymInt heads = query.sym_size(1);
  const c10::SymDimVector of_out = {query.sym_size(0), heads, packed.value.sym_size(2)};
  const BackwardChecks checks("flash::_varlen_backward", query);
  checks.check_device("grad_out", grad_out);
  if (gradients == Gradients::kReal) checks.check_rows("grad_out", grad_out, of_out);
  checks.check_rows("out", out, of_out);
  checks.check_statistics("row_stats", row_stats, {2, query.sym_size(0) * heads});
  checks.check_seed(seed, o.dropout());
  checks.check_needed("alibi_slopes", o.alibi_slopes(), needed[3]);
  checks.check_needed("sinks", o.sinks(), needed[4]);
}

}  // namespace flash
