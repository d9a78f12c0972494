#include <ATen/ATen.h>
#include <flash_attention/sparsity.h>

#include "ops/kernel_selection.h"
#include "ops/schedule.h"

namespace flash {
namespace {

constexpr char kSparsity[] = "flash::sparsity_measurement";

void check_sparsity(const at::Tensor& query, const at::Tensor& key, const at::Tensor& index) {
  TORCH_CHECK_VALUE(query.dim() == 4 && key.dim() == 4 && key.size(0) == query.size(0) &&
                        key.size(1) == query.size(1) && key.size(3) == query.size(3),
                    kSparsity,
                    ": expected query [batch, heads, queries, head_dim] and key [batch, heads, "
                    "keys, head_dim], got ",
                    query.sizes(), " and ", key.sizes());
  check_kernel_input(kSparsity, "query", query);
  check_same_dtype(kSparsity, "query", query, "key", key);
  TORCH_CHECK_TYPE(index.scalar_type() == at::kLong, kSparsity,
                   ": expected index of dtype int64, got ", index.scalar_type(),
                   "; convert it with .to(torch::kLong)");
  TORCH_CHECK_VALUE(index.device().is_cpu(), kSparsity, ": expected index on the CPU, got it on ",
                    index.device(), "; move it with .cpu()");
  TORCH_CHECK_VALUE(index.dim() == 2 && index.size(0) == query.size(2) && index.size(1) >= 1,
                    kSparsity, ": expected index [", query.size(2),
                    ", samples], a row for each query and at least one sample, got ",
                    index.sizes());
  if (index.numel() == 0) return;
  const auto [least, greatest] = at::aminmax(index);
  const int64_t low = least.item<int64_t>(), high = greatest.item<int64_t>();
  TORCH_CHECK_VALUE(low >= 0 && high < key.size(2), kSparsity,
                    ": expected values of index in [0, keys) = [0, ", key.size(2),
                    "), got them from ", low, " to ", high);
}

ConstRows strided_rows(const at::Tensor& t) {
  return {t.const_data_ptr(), {t.stride(0), t.stride(1), t.stride(2)}};
}

}  // namespace

at::Tensor sparsity_measurement(const at::Tensor& query, const at::Tensor& key,
                                const at::Tensor& index) {
  check_sparsity(query, key, index);
  const at::Tensor q = rows_contiguous(query), k = rows_contiguous(key);
  const at::Tensor samples = index.contiguous();
  const at::Tensor out = at::empty({q.size(0), q.size(1), q.size(2)}, q.options());
  SparsityParams p = {};
  p.query = strided_rows(q);
  p.key = strided_rows(k);
  p.index = samples.const_data_ptr<int64_t>();
  p.out = out.mutable_data_ptr();
  p.batch = q.size(0), p.heads = q.size(1), p.queries = q.size(2);
  p.keys = k.size(2), p.head_dim = q.size(3), p.samples = samples.size(1);
  const TypedKernels& kernels = kernels_of(kSparsity, q.scalar_type());
  run_units(kernels.sparsity_plan(p),
            [&](int64_t begin, int64_t end) { kernels.sparsity(p, begin, end); });
  return out;
}

}  // namespace flash
