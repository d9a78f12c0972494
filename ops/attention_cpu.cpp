// CPU: tensors to pointers and strides, and units of work to threads.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <flash_attention/ops.h>
#include <torch/library.h>

#include <algorithm>

#include "csrc/kernels.h"
#include "ops/backward_checks.h"
#include "ops/kernel_call.h"
#include "ops/kernel_params.h"
#include "ops/operator.h"
#include "ops/schedule.h"
#include "ops/split_keys.h"

namespace flash {
namespace {

const TypedKernels& kernels_for(at::ScalarType dtype, bool use_simd) {
  return kernels_of("flash::attention", dtype, use_simd);
}

/// Whether one element of the bias belongs to several scores, or to none.
bool broadcasts(const at::Tensor& bias, const Sizes& s) {
  return bias.numel() != s.batch * s.heads * s.queries * s.keys;
}

/// What the gradient of a bias is gathered in. One that broadcasts sums up to B H L S numbers into
/// one, too many for float32. One that does not is written number by number, and needs zeros only
/// where a window leaves numbers out.
at::Tensor grad_bias_memory(const at::Tensor& bias, bool adds, bool has_window) {
  const at::TensorOptions options = adds ? bias.options().dtype(at::kDouble) : bias.options();
  return adds || has_window ? at::zeros(bias.sizes(), options) : at::empty(bias.sizes(), options);
}

/// What the gradient of `input` is summed up in, block by block: of its layout, in float32 where it
/// is narrower.
at::Tensor empty_sums(bool needed, const at::Tensor& input) {
  return empty_grad(needed, input, compute_dtype(input.scalar_type()));
}

/// A forward pass up to where its results go.
class Forward {
 public:
  Forward(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
          const CallOptions& o)
      : sizes_(check_attention(query, key, value, o)),
        options_(with_native_numbers(o)),
        kernels_(kernels_for(query.scalar_type(), o.use_simd)),
        query_(rows_contiguous(query)),
        key_(rows_contiguous(key)),
        value_(rows_contiguous(value)),
        seed_(o.dropout > 0 ? draw_seed() : 0) {
    params_.shape = shape_of(sizes_);
    params_.score = score_params(options_, sizes_, params_.shape.head_dim, seed_);
    params_.storage = storage_of(query.scalar_type());
    params_.query = rows_of(query_);
    params_.key = rows_of(key_);
    params_.value = rows_of(value_);
    params_.block_size = o.block_size;
    if (out_rows() > 0) plan_ = kernels_.forward_plan(params_);
  }

  const Sizes& sizes() const { return sizes_; }
  int64_t seed() const { return seed_; }

  /// Writes row_stats where it is told to, or else to memory of its own.
  void run(const at::Tensor& out, void* row_stats) {
    // Beside no row, other sizes may be any: there may be no memory for scratch that goes by them.
    if (out_rows() == 0) return;
    params_.out_storage = storage_of(out.scalar_type());
    params_.out = mutable_rows_of(out);
    const bool splits = SplitKeys::fits(params_);
    const at::ScalarType dtype = compute_dtype(out.scalar_type());
    const int64_t stats_bytes = out_rows() * static_cast<int64_t>(c10::elementSize(dtype));
    const Schedule schedule(plan_);
    const Scratch scratch(splits ? 0 : kernels_.forward_scratch_bytes(params_), schedule.threads,
                          row_stats == nullptr ? 2 * stats_bytes : 0);
    if (row_stats == nullptr) row_stats = scratch.shared();
    params_.row_max = row_stats;
    params_.row_sum = static_cast<uint8_t*>(row_stats) + stats_bytes;
    if (splits) return SplitKeys(kernels_, params_, dtype).run();
    at::parallel_for(0, plan_.units, schedule.grain, [&](int64_t begin, int64_t end) {
      kernels_.forward(params_, begin, end, scratch.of_this_thread());
    });
  }

 private:
  int64_t out_rows() const {
    return params_.shape.batch * params_.shape.heads * params_.shape.queries;
  }

  const Sizes sizes_;
  const CallOptions options_;
  const TypedKernels& kernels_;
  const at::Tensor query_, key_, value_;
  const int64_t seed_;
  ForwardParams params_ = {};
  WorkPlan plan_;
};

ForwardResult forward_cpu(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                          const CallOptions& o) {
  Forward forward(query, key, value, o);
  at::Tensor out = empty_out(query, value, forward.sizes(), compute_dtype(query.scalar_type()));
  at::Tensor row_stats = empty_row_stats(query, forward.sizes());
  at::Tensor seed = empty_seed(query, o.dropout);
  if (o.dropout > 0) *seed.mutable_data_ptr<int64_t>() = forward.seed();
  forward.run(out, row_stats.mutable_data_ptr());
  return {out, row_stats, seed};
}

/// A gradient of [H] or [B, H] numbers from what each row adds to it, [B, H, L] (or [B, L]).
at::Tensor sum_rows(const at::Tensor& numbers, const at::Tensor& rows) {
  at::Tensor sums = rows.sum(-1, /*keepdim=*/false, at::kDouble);
  if (rows.dim() == 2) sums = sums.unsqueeze(1);
  if (numbers.dim() == 1) sums = sums.sum(0);
  return sums.to(numbers.scalar_type());
}

BackwardResult backward_cpu(const at::Tensor& grad_out, const std::optional<at::Tensor>& grad_lse,
                            const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                            const at::Tensor& out, const at::Tensor& row_stats,
                            const at::Tensor& seed, const CallOptions& options, Needed needed) {
  const Sizes sizes = check_backward(grad_out, grad_lse, query, key, value, {out, row_stats, seed},
                                     options, needed);
  const CallOptions o = with_native_numbers(options);
  const TypedKernels& kernels = kernels_for(query.scalar_type(), o.use_simd);
  const at::Tensor q = rows_contiguous(query);
  const at::Tensor k = rows_contiguous(key);
  const at::Tensor v = rows_contiguous(value);
  const at::Tensor d_out = rows_contiguous(grad_out);
  // As the forward made them, but for a vmap, which may hand over one row of them for many.
  const at::Tensor saved_out = rows_contiguous(out);
  const at::Tensor stats = row_stats.contiguous();
  const at::Tensor d_lse = grad_lse.has_value() ? grad_lse->contiguous() : at::Tensor();
  const at::Tensor d_query = empty_sums(needed[0], query);
  const at::Tensor d_key = empty_sums(needed[1], key);
  const at::Tensor d_value = empty_sums(needed[2], value);
  // Each apart, needed or not: the results of an operator may not share memory.
  at::Tensor d_bias = allocate({0}, query);
  at::Tensor d_slopes = allocate({0}, query);
  at::Tensor d_sinks = allocate({0}, query);

  BackwardParams p = {};
  p.shape = shape_of(sizes);
  p.score =
      score_params(o, sizes, p.shape.head_dim, o.dropout > 0 ? *seed.const_data_ptr<int64_t>() : 0);
  p.storage = storage_of(query.scalar_type());
  p.query = rows_of(q);
  p.key = rows_of(k);
  p.value = rows_of(v);
  p.out_storage = storage_of(out.scalar_type());
  p.grad_out_storage = storage_of(grad_out.scalar_type());
  p.out = rows_of(saved_out);
  p.grad_out = rows_of(d_out);
  p.row_max = stats.const_data_ptr();
  p.row_sum = static_cast<const uint8_t*>(p.row_max) + stats.nbytes() / 2;
  p.grad_lse = d_lse.defined() ? d_lse.const_data_ptr() : nullptr;
  if (needed[0]) p.grad_query = mutable_rows_of(d_query);
  if (needed[1]) p.grad_key = mutable_rows_of(d_key);
  if (needed[2]) p.grad_value = mutable_rows_of(d_value);
  if (needed[3]) {
    p.grad_bias_adds = broadcasts(*o.bias, sizes);
    const bool has_window = p.score.window_left >= 0 || p.score.window_right >= 0;
    d_bias = grad_bias_memory(*o.bias, p.grad_bias_adds, has_window);
    p.grad_bias = d_bias.mutable_data_ptr();
    p.grad_bias_is_double = d_bias.scalar_type() == at::kDouble;
    p.grad_bias_storage = storage_of(d_bias.scalar_type());
    broadcast_strides(d_bias, sizes, 4, p.grad_bias_strides);
  }
  at::Tensor slope_rows, sink_rows;
  if (needed[4]) {
    slope_rows = at::empty_like(stats.select(0, 0));
    p.grad_slope_rows = slope_rows.mutable_data_ptr();
  }
  if (needed[5]) {
    sink_rows = at::empty_like(stats.select(0, 0));
    p.grad_sink_rows = sink_rows.mutable_data_ptr();
  }
  p.block_size = o.block_size;

  // Beside no query at all the other dimensions may be of any size: they take no memory, but units
  // of work would be counted by them.
  const bool has_rows = stats.numel() > 0;
  const WorkPlan plan = has_rows ? kernels.backward_plan(p) : WorkPlan{};
  const Schedule schedule(plan);
  const Scratch scratch(has_rows ? kernels.backward_scratch_bytes(p) : 0, schedule.threads);
  for (int64_t step = 0; step < plan.steps; ++step) {
    at::parallel_for(0, plan.units, schedule.grain, [&](int64_t begin, int64_t end) {
      kernels.backward(p, step, begin, end, scratch.of_this_thread());
    });
  }
  if (!has_rows) {
    for (const at::Tensor& sums : {d_key, d_value, d_bias}) sums.zero_();
  }
  if (needed[3]) d_bias = in_dtype(d_bias, o.bias->scalar_type());
  if (needed[4]) d_slopes = sum_rows(*options.alibi_slopes, slope_rows);
  if (needed[5]) d_sinks = sum_rows(*options.sinks, sink_rows);
  const at::ScalarType dtype = query.scalar_type();
  return {in_dtype(d_query, dtype),
          in_dtype(d_key, dtype),
          in_dtype(d_value, dtype),
          d_bias,
          d_slopes,
          d_sinks};
}

at::Tensor attention_cpu(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                         const CallOptions& o) {
  Forward forward(query, key, value, o);
  at::Tensor out = empty_out(query, value, forward.sizes());
  forward.run(out, nullptr);
  return out;
}

LseResult attention_with_lse_cpu(const at::Tensor& query, const at::Tensor& key,
                                 const at::Tensor& value, const CallOptions& o) {
  Forward forward(query, key, value, o);
  at::Tensor out = empty_out(query, value, forward.sizes());
  const at::Tensor row_stats = empty_row_stats(query, forward.sizes());
  forward.run(out, row_stats.mutable_data_ptr());
  return {out, log_sum_exp(row_stats)};
}

/// Throws unless a tensor of these sizes fits into an address space, a size of 0 counted as 1:
/// nothing that is computed from them overflows then.
void check_addressable(at::IntArrayRef sizes, at::ScalarType dtype) {
  constexpr double kAddressable = 1LL << 47;  // bytes, of a process on x86-64
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
  const TypedKernels& kernels = kernels_for(dtype, use_simd);
  ForwardParams forward = {};
  forward.shape = {batch, heads, heads, heads, queries, keys, head_dim, value_dim};
  forward.block_size = block_size;
  forward.score.window_left = forward.score.window_right = -1;
  forward.score.bias_kind = has_bias ? BiasKind::kAdditive : BiasKind::kNone;
  forward.score.softcap = has_softcap ? 1.0 : 0.0;
  forward.storage = forward.out_storage = storage_of(dtype);
  BackwardParams backward = {};
  backward.shape = forward.shape;
  backward.score = forward.score;
  backward.block_size = block_size;
  backward.storage = backward.grad_out_storage = storage_of(dtype);
  const auto scratch = [](const WorkPlan& plan, int64_t bytes) {
    return Schedule(plan).threads * bytes;
  };
  const auto size = static_cast<int64_t>(at::elementSize(compute_dtype(dtype)));
  const int64_t rows = 2 * batch * heads * queries * size;
  // The sums of the gradients of query, key and value, which are results themselves where not
  // narrow.
  const int64_t sums =
      compute_dtype(dtype) == dtype
          ? 0
          : batch * heads * (queries * head_dim + keys * (head_dim + value_dim)) * size;
  const int64_t forward_bytes =
      SplitKeys::fits(forward)
          ? SplitKeys(kernels, forward, compute_dtype(dtype)).bytes()
          : scratch(kernels.forward_plan(forward), kernels.forward_scratch_bytes(forward));
  return {rows + forward_bytes, sums + scratch(kernels.backward_plan(backward),
                                               kernels.backward_scratch_bytes(backward))};
}

}  // namespace flash

TORCH_LIBRARY_IMPL(flash, CPU, m) {
  using namespace flash;
  m.impl("attention", AttentionCall<at::Tensor>::call<attention_cpu>);
  m.impl("attention_with_lse", AttentionCall<LseResult>::call<attention_with_lse_cpu>);
  m.impl("_forward", AttentionCall<ForwardResult>::call<forward_cpu>);
  m.impl("_backward", BackwardCall::call<backward_cpu>);
}

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
