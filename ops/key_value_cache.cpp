#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <flash_attention/key_value_cache.h>
#include <torch/custom_class.h>
#include <torch/library.h>

#include "ops/attention_checks.h"
#include "ops/operator.h"
#include "ops/storage_checks.h"

namespace flash {
namespace {

constexpr char kName[] = "flash::KeyValueCache";

/// Throws unless `t` is dense, on the device of the cache, and no larger than its storage.
void check_place(const char* name, const at::Tensor& t, const at::Tensor& cache) {
  TORCH_CHECK_NOT_IMPLEMENTED(t.layout() == at::kStrided, kName, ": expected ", name,
                              " as a dense tensor, got the layout ", t.layout());
  TORCH_CHECK_VALUE(t.device() == cache.device(), kName, ": expected ", name, " on ",
                    cache.device(), ", got it on ", t.device());
  check_storage({t});
}

void check_part(const char* name, const at::Tensor& part, const at::Tensor& cache) {
  const bool fits = part.dim() == 4 && part.size(0) == cache.size(0) &&
                    part.size(1) == cache.size(1) && part.size(3) == cache.size(3);
  TORCH_CHECK_VALUE(fits, kName, ": expected ", name, " [", cache.size(0), ", ", cache.size(1),
                    ", positions, ", cache.size(3), "], got ", part.sizes());
  TORCH_CHECK_TYPE(part.scalar_type() == cache.scalar_type(), kName, ": expected ", name,
                   " of dtype ", cache.scalar_type(), " as the cache, got ", part.scalar_type());
  check_place(name, part, cache);
  TORCH_CHECK_NOT_IMPLEMENTED(
      !(at::GradMode::is_enabled() && part.requires_grad()), kName, ": expected ", name,
      " without a gradient, because the cache is written in place; call it in torch.no_grad()");
}

/// `counts`, int64 [B] of values in [0, positions], or `positions` for every sequence.
at::Tensor checked_counts(const std::optional<at::Tensor>& counts, const at::Tensor& lengths,
                          int64_t positions) {
  if (!counts.has_value()) return at::full_like(lengths, positions);
  TORCH_CHECK_TYPE(counts->scalar_type() == at::kLong, kName,
                   ": expected counts of dtype int64, got ", counts->scalar_type());
  TORCH_CHECK_VALUE(counts->sizes() == lengths.sizes(), kName, ": expected counts ",
                    lengths.sizes(), ", one per sequence, got ", counts->sizes());
  check_place("counts", *counts, lengths);
  if (counts->numel() > 0) {
    const auto least = counts->min().item<int64_t>(), most = counts->max().item<int64_t>();
    TORCH_CHECK_VALUE(least >= 0 && most <= positions, kName, ": expected counts from 0 to the ",
                      positions, " positions that come, got ", least, " to ", most);
  }
  return *counts;
}

}  // namespace

KeyValueCache::KeyValueCache(int64_t batch, int64_t key_heads, int64_t capacity, int64_t head_dim,
                             std::optional<int64_t> value_dim, std::optional<int64_t> value_heads,
                             at::ScalarType dtype) {
  const int64_t width = value_dim.value_or(head_dim), heads = value_heads.value_or(key_heads);
  TORCH_CHECK_VALUE(
      batch >= 0 && key_heads >= 1 && heads >= 1 && capacity >= 1 && head_dim >= 0 && width >= 0,
      kName, ": expected sizes above 0, got batch ", batch, ", key_heads ", key_heads,
      ", value_heads ", heads, ", capacity ", capacity, ", head_dim ", head_dim, ", value_dim ",
      width);
  check_floating(kName, "keys and values", dtype);
  // Zeros: a NaN in uninitialised memory would not reach a result, but masking it takes time.
  key_ = at::zeros({batch, key_heads, capacity, head_dim}, at::dtype(dtype));
  value_ = at::zeros({batch, heads, capacity, width}, at::dtype(dtype));
  lengths_ = at::zeros({batch}, at::kLong);
}

int64_t KeyValueCache::longest() const {
  return lengths_.numel() == 0 ? 0 : lengths_.max().item<int64_t>();
}
at::Tensor KeyValueCache::lengths() const { return lengths_.clone(); }
at::Tensor KeyValueCache::key() const { return key_.narrow(2, 0, longest()); }
at::Tensor KeyValueCache::value() const { return value_.narrow(2, 0, longest()); }

void KeyValueCache::append(const at::Tensor& key, const at::Tensor& value,
                           const std::optional<at::Tensor>& counts) {
  check_part("key", key, key_);
  check_part("value", value, value_);
  TORCH_CHECK_VALUE(key.size(2) == value.size(2), kName,
                    ": expected key and value of one number of positions, got ", key.size(2),
                    " and ", value.size(2));
  const at::NoGradGuard no_grad;
  const at::Tensor added = checked_counts(counts, lengths_, key.size(2));
  const at::Tensor lengths = lengths_ + added;
  const auto wanted = lengths.numel() == 0 ? 0 : lengths.max().item<int64_t>();
  TORCH_CHECK_VALUE(wanted <= capacity(), kName, ": expected at most ", capacity(),
                    " positions of a sequence, got ", wanted,
                    "; create the cache with that capacity, or truncate it first");
  const auto* const from = lengths_.const_data_ptr<int64_t>();
  const at::Tensor each = added.contiguous();
  const auto* const count = each.const_data_ptr<int64_t>();
  for (int64_t b = 0; b < lengths_.numel(); ++b) {
    for (const auto& [cache, part] : {std::pair(key_, key), std::pair(value_, value)}) {
      cache[b].narrow(1, from[b], count[b]).copy_(part[b].narrow(1, 0, count[b]));
    }
  }
  lengths_ = lengths;
}

at::Tensor KeyValueCache::attention(const at::Tensor& query, const AttentionOptions& options,
                                    const std::optional<at::Tensor>& counts) const {
  TORCH_CHECK_VALUE(query.dim() == 4 && query.size(0) == lengths_.numel(), kName,
                    ": expected query [", lengths_.numel(), ", heads, positions, head_dim], got ",
                    query.sizes());
  TORCH_CHECK_VALUE(!options.query_positions().has_value(), kName,
                    ": expected no query_positions: those of the cache are used");
  const int64_t queries = query.size(2);
  const at::Tensor given = checked_counts(counts, lengths_, queries);
  TORCH_CHECK_VALUE((given <= lengths_).all().item<bool>(), kName,
                    ": expected queries of positions in the cache, got ", queries,
                    " for lengths of ", lengths_, "; append their keys and values first");
  AttentionOptions o = options;
  o.causal(true);
  const bool same_length = !counts.has_value() && (lengths_ == longest()).all().item<bool>();
  if (!same_length) {
    o.query_positions((lengths_ - given).view({-1, 1, 1}) + at::arange(queries, at::kLong));
  }
  return flash::attention(query, key(), value(), o);
}

void KeyValueCache::truncate(int64_t length) {
  TORCH_CHECK_VALUE(length >= 0, kName, ": expected a length of at least 0, got ", length);
  lengths_ = lengths_.clamp_max(length);
}

namespace {

/// torch.classes.flash.KeyValueCache: KeyValueCache with arguments of types that TorchScript has.
struct BoundCache : torch::CustomClassHolder {
  BoundCache(int64_t batch, int64_t key_heads, int64_t capacity, int64_t head_dim,
             std::optional<int64_t> value_dim, std::optional<int64_t> value_heads,
             at::ScalarType dtype)
      : cache(batch, key_heads, capacity, head_dim, value_dim, value_heads, dtype) {}

  KeyValueCache cache;
};

using Bound = c10::intrusive_ptr<BoundCache>;

at::Tensor attention_of_cache(const Bound& self, const at::Tensor& query,
                              const std::optional<at::Tensor>& counts,
                              const AttentionOptions& options) {
  return self->cache.attention(query, options, counts);
}

/// query, counts, and all options in the order of the schemas.
using CacheAttention =
    Operator<at::Tensor, Types<const Bound&, const at::Tensor&, const std::optional<at::Tensor>&>,
             AllOptionArguments, Types<>>;

}  // namespace
}  // namespace flash

TORCH_LIBRARY_FRAGMENT(flash, m) {
  using namespace flash;
  using at::Tensor;
  m.class_<BoundCache>("KeyValueCache")
      .def(torch::init<int64_t, int64_t, int64_t, int64_t, std::optional<int64_t>,
                       std::optional<int64_t>, at::ScalarType>())
      .def("append",
           [](const Bound& self, const Tensor& key, const Tensor& value,
              const std::optional<Tensor>& counts) { self->cache.append(key, value, counts); })
      .def("attention", &CacheAttention::kernel<attention_of_cache>)
      .def("truncate", [](const Bound& self, int64_t length) { self->cache.truncate(length); })
      .def("lengths", [](const Bound& self) { return self->cache.lengths(); })
      .def("capacity", [](const Bound& self) { return self->cache.capacity(); })
      .def("key", [](const Bound& self) { return self->cache.key(); })
      .def("value", [](const Bound& self) { return self->cache.value(); });
}
