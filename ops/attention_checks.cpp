#include "ops/attention_checks.h"

#include <c10/core/ScalarType.h>
#include <c10/util/Exception.h>

#include <cmath>
#include <optional>
#include <string>

#include "ops/dtypes.h"
#include "ops/storage_checks.h"

namespace flash {
namespace {

void check_dtype(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value) {
  const at::ScalarType dtype = query.scalar_type();
  TORCH_CHECK_TYPE(key.scalar_type() == dtype && value.scalar_type() == dtype,
                   "flash::attention: expected query, key and value of one dtype, got ", dtype,
                   ", ", key.scalar_type(), " and ", value.scalar_type(),
                   "; convert them with .to(dtype)");
  check_floating("flash::attention", "query, key and value", dtype);
}

void check_device(const at::Tensor& query, const at::Tensor& other, const char* name) {
  TORCH_CHECK_VALUE(other.device() == query.device(),
                    "flash::attention: expected every tensor on the device of query, ",
                    query.device(), ", got ", name, " on ", other.device(), "; move it with .to()");
}

void check_heads(const c10::SymInt& heads, const c10::SymInt& others, const char* name) {
  const bool divides = others == 0 ? heads == 0 : heads % others == 0;
  TORCH_CHECK_VALUE(divides, "flash::attention: expected the ", heads,
                    " heads of query to be a multiple of the heads of ", name, ", got ", others);
}

// Whether `shape`, aligned at the right, broadcasts to `target`.
bool broadcasts_to(c10::SymIntArrayRef shape, c10::SymIntArrayRef target) {
  if (shape.size() > target.size()) return false;
  const size_t offset = target.size() - shape.size();
  for (size_t i = 0; i < shape.size(); ++i) {
    if (shape[i] != 1 && shape[i] != target[offset + i]) return false;
  }
  return true;
}

// A 3-D call takes [B, L, S], and also [B, 1, L, S], since it is a call with one head.
void check_broadcast(const char* name, const at::Tensor& tensor, const Sizes& sizes,
                     c10::SymIntArrayRef full) {
  const bool drop = missing_head_dimension(sizes, tensor.dim(), full.size()) >= 0;
  c10::SymDimVector target(full.begin(), full.end());
  if (drop) target.erase(target.begin() + 1);
  TORCH_CHECK_VALUE(broadcasts_to(tensor.sym_sizes(), target), "flash::attention: expected ", name,
                    " to broadcast to ", c10::SymIntArrayRef(target), ", got shape ",
                    tensor.sym_sizes());
}

void check_bias(const at::Tensor& bias, const at::Tensor& query, const Sizes& sizes) {
  const at::ScalarType dtype = bias.scalar_type();
  TORCH_CHECK_TYPE(dtype == at::kBool || is_option_dtype(query, bias),
                   "flash::attention: expected bias of dtype bool (True = attend) or ",
                   option_dtypes(query), " got ", dtype,
                   "; convert it with .to(query.dtype) or .bool()");
  check_device(query, bias, "bias");
  check_broadcast("bias", bias, sizes, {sizes.batch, sizes.heads, sizes.queries, sizes.keys});
}

void check_positions(const at::Tensor& positions, const at::Tensor& query, const Sizes& sizes) {
  TORCH_CHECK_TYPE(positions.scalar_type() == at::kLong,
                   "flash::attention: expected query_positions of dtype int64, got ",
                   positions.scalar_type(), "; convert it with .long()");
  check_device(query, positions, "query_positions");
  check_broadcast("query_positions", positions, sizes, {sizes.batch, sizes.heads, sizes.queries});
}

// One element per head, or per batch element and head.
void check_per_head(const char* name, const at::Tensor& tensor, const at::Tensor& query,
                    const Sizes& sizes) {
  TORCH_CHECK_TYPE(is_option_dtype(query, tensor), "flash::attention: expected ", name,
                   " of dtype ", option_dtypes(query), " got ", tensor.scalar_type(),
                   "; convert it with .to(query.dtype)");
  check_device(query, tensor, name);
  const bool fits =
      (tensor.dim() == 1 && tensor.sym_size(0) == sizes.heads) ||
      (tensor.dim() == 2 && tensor.sym_size(0) == sizes.batch && tensor.sym_size(1) == sizes.heads);
  TORCH_CHECK_VALUE(fits, "flash::attention: expected ", name, " of shape [heads] = [", sizes.heads,
                    "] or [batch, heads], got ", tensor.sym_sizes());
}

void check_window(const Window& window) {
  TORCH_CHECK_VALUE(
      window.left >= -1 && window.right >= -1,
      "flash::attention: expected window as (left, right), the numbers of keys before "
      "and after a query's position, each at least 0, or -1 for no bound, got (",
      window.left, ", ", window.right, ")");
}

}  // namespace

void check_floating(const char* op, const char* name, at::ScalarType dtype) {
  TORCH_CHECK_TYPE(
      dtype == at::kFloat || dtype == at::kDouble || dtype == at::kBFloat16 || dtype == at::kHalf,
      op, ": expected ", name, " of dtype float32, float64, bfloat16 or float16, got ", dtype,
      "; convert with .float()");
}

bool is_option_dtype(const at::Tensor& query, const at::Tensor& option) {
  const at::ScalarType dtype = query.scalar_type();
  return option.scalar_type() == dtype || option.scalar_type() == compute_dtype(dtype);
}

std::string option_dtypes(const at::Tensor& query) {
  const at::ScalarType dtype = query.scalar_type();
  const std::string own = std::string(c10::toString(dtype)) + " as query,";
  return compute_dtype(dtype) == dtype ? own : own + " or Float,";
}

int64_t missing_head_dimension(const Sizes& sizes, int64_t dims, int64_t rank) {
  if (sizes.has_head_dimension || dims >= rank) return -1;
  // [B, L, S] or [B, L]: the head dimension follows the batch, if the tensor has a batch dimension.
  return dims == rank - 1 ? 1 : 0;
}

void check_dropout(double dropout) {
  TORCH_CHECK_VALUE(dropout >= 0.0 && dropout <= 1.0,
                    "flash::attention: expected dropout to be a probability in [0, 1], got ",
                    dropout);
}

Sizes check_attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                      const AttentionOptions& o) {
  check_storage({query, key, value});
  for_each_tensor(o, [](const std::optional<at::Tensor>& t) { check_storage({t}); });
  const int64_t dim = query.dim();
  TORCH_CHECK_VALUE((dim == 3 || dim == 4) && key.dim() == dim && value.dim() == dim,
                    "flash::attention: expected query, key and value all as [batch, heads, length, "
                    "head_dim] or all as [batch, length, head_dim], got query ",
                    query.sym_sizes(), ", key ", key.sym_sizes(), ", value ", value.sym_sizes());
  check_dtype(query, key, value);
  check_device(query, key, "key");
  check_device(query, value, "value");

  const auto heads = [dim](const at::Tensor& t) {
    return dim == 4 ? t.sym_size(1) : c10::SymInt(1);
  };
  Sizes s = {query.sym_size(0),  heads(query),       heads(key),
             heads(value),       query.sym_size(-2), key.sym_size(-2),
             query.sym_size(-1), value.sym_size(-1), dim == 4};
  TORCH_CHECK_VALUE(key.sym_size(-2) == value.sym_size(-2),
                    "flash::attention: expected key and value of one length, got ",
                    key.sym_size(-2), " and ", value.sym_size(-2));
  TORCH_CHECK_VALUE(key.sym_size(0) == s.batch && value.sym_size(0) == s.batch,
                    "flash::attention: expected query, key and value of one batch size, got ",
                    s.batch, ", ", key.sym_size(0), " and ", value.sym_size(0),
                    "; use .expand() to share one");
  TORCH_CHECK_VALUE(key.sym_size(-1) == s.head_dim,
                    "flash::attention: expected query and key of one head_dim, got ", s.head_dim,
                    " and ", key.sym_size(-1));
  check_heads(s.heads, s.key_heads, "key");
  check_heads(s.heads, s.value_heads, "value");
  check_dropout(o.dropout());
  TORCH_CHECK_VALUE(o.block_size() >= 1,
                    "flash::attention: expected block_size of at least 1, got ", o.block_size());
  check_window(o.window());
  TORCH_CHECK_VALUE(o.softcap() >= 0.0 && std::isfinite(o.softcap()),
                    "flash::attention: expected softcap to be finite and at least 0, got ",
                    o.softcap(), "; pass 0 for none");
  if (o.bias().has_value()) check_bias(*o.bias(), query, s);
  if (o.query_positions().has_value()) check_positions(*o.query_positions(), query, s);
  if (o.alibi_slopes().has_value()) check_per_head("alibi_slopes", *o.alibi_slopes(), query, s);
  if (o.sinks().has_value()) check_per_head("sinks", *o.sinks(), query, s);
  return s;
}

}  // namespace flash
