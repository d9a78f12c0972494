// flash::attention_memory: what attention_cpu.cpp allocates for a call.

#include <ATen/ATen.h>
#include <flash_attention/ops.h>
#include <torch/library.h>

#include <algorithm>

#include "csrc/decode_choice.h"
#include "csrc/kernels.h"
#include "ops/attention_checks.h"
#include "ops/dtypes.h"
#include "ops/kernel_params.h"
#include "ops/kernel_selection.h"
#include "ops/schedule.h"
#include "ops/split_kv.h"

namespace flash {
namespace {

/// Throws unless a tensor of these sizes, 0 counted as 1, fits into an address space, so that
/// nothing that is computed from them overflows.
void check_addressable(at::IntArrayRef sizes, at::ScalarType dtype) {
  constexpr double kAddressable = 1LL << 47;  // bytes of an address space on x86-64, the smallest
  double bytes = static_cast<double>(at::elementSize(dtype));
  for (const int64_t size : sizes) bytes *= static_cast<double>(std::max<int64_t>(size, 1));
  TORCH_CHECK_VALUE(bytes <= kAddressable,
                    "flash::attention_memory: expected tensors of at most 2^47 bytes, got the "
                    "largest sizes [batch, heads, length, width] = ",
                    sizes, " of ", dtype);
}

}  // namespace

MemoryUsage attention_memory(int64_t batch, int64_t heads, int64_t queries, int64_t keys,
                             int64_t head_dim, int64_t value_dim, at::ScalarType dtype,
                             int64_t block_size, bool use_simd, bool has_bias, bool has_softcap) {
  TORCH_CHECK_VALUE(
      batch >= 0 && heads >= 0 && queries >= 0 && keys >= 0 && head_dim >= 0 && value_dim >= 0,
      "flash::attention_memory: expected sizes of at least 0, got batch ", batch, ", heads ", heads,
      ", queries ", queries, ", keys ", keys, ", head_dim ", head_dim, ", value_dim ", value_dim);
  check_floating("flash::attention_memory", "query", dtype);
  check_addressable({batch, heads, std::max(queries, keys), std::max(head_dim, value_dim)}, dtype);
  TORCH_CHECK_VALUE(block_size >= 1,
                    "flash::attention_memory: expected block_size of at least 1, got ", block_size);
  const TypedKernels& kernels = kernels_of("flash::attention", dtype, use_simd);
  ForwardParams forward = {};
  forward.shape = {batch, heads, heads, heads, queries, keys, head_dim, value_dim};
  forward.block_size = block_size;
  forward.score.window_left = forward.score.window_right = -1;
  forward.score.bias_kind = has_bias ? BiasKind::kAdditive : BiasKind::kNone;
  forward.score.softcap = has_softcap ? 1.0 : 0.0;
  forward.storage = forward.out_storage = storage_of(dtype);
  forward.float_parts = float_parts_of("flash::attention", dtype);
  BackwardParams backward = {};
  backward.shape = forward.shape;
  backward.score = forward.score;
  backward.block_size = block_size;
  backward.storage = backward.grad_out_storage = storage_of(dtype);
  backward.float_parts = forward.float_parts;
  const auto scratch = [](const WorkPlan& plan, int64_t bytes) {
    return Schedule(plan).threads * bytes;
  };
  const auto size = static_cast<int64_t>(at::elementSize(compute_dtype(dtype)));
  const int64_t rows = 2 * batch * heads * queries * size;
  // The gradients of 16-bit query, key and value are accumulated in float32. Others are accumulated
  // in the results.
  const int64_t accumulators =
      compute_dtype(dtype) == dtype
          ? 0
          : batch * heads * (queries * head_dim + keys * (head_dim + value_dim)) * size;
  const int64_t forward_bytes =
      splits_keys(forward)
          ? SplitKv(kernels, forward, compute_dtype(dtype)).bytes()
          : scratch(kernels.forward_plan(forward), kernels.forward_scratch_bytes(forward));
  return {rows + forward_bytes, accumulators + scratch(kernels.backward_plan(backward),
                                                       kernels.backward_scratch_bytes(backward))};
}

}  // namespace flash

TORCH_LIBRARY_FRAGMENT(flash, m) {
  m.def(
      "attention_memory(int batch, int heads, int queries, int keys, int head_dim, int value_dim, "
      "ScalarType dtype, int block_size=64, bool use_simd=True, bool has_bias=False, "
      "bool has_softcap=False) -> (int forward, int backward)",
      [](int64_t batch, int64_t heads, int64_t queries, int64_t keys, int64_t head_dim,
         int64_t value_dim, at::ScalarType dtype, int64_t block_size, bool use_simd, bool has_bias,
         bool has_softcap) {
        const flash::MemoryUsage bytes =
            flash::attention_memory(batch, heads, queries, keys, head_dim, value_dim, dtype,
                                    block_size, use_simd, has_bias, has_softcap);
        return std::make_tuple(bytes.forward, bytes.backward);
      });
}
