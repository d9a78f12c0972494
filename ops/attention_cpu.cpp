// CPU: checks a call, turns its tensors into pointers and strides, asks the kernels for a plan and
// runs its units on the threads.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <flash_attention/ops.h>
#include <torch/library.h>

#include <algorithm>

#include "csrc/kernels.h"
#include "ops/attention_part.h"
#include "ops/backward_checks.h"
#include "ops/dropout_mask.h"
#include "ops/dtypes.h"
#include "ops/forward_backward.h"
#include "ops/kernel_params.h"
#include "ops/kernel_selection.h"
#include "ops/results.h"
#include "ops/schedule.h"
#include "ops/split_kv.h"

namespace flash {
namespace {

const TypedKernels& kernels_for(at::ScalarType dtype, bool use_simd) {
  return kernels_of("flash::attention", dtype, use_simd);
}

/// Whether an element of the bias is added to several scores, or to none.
bool broadcasts(const at::Tensor& bias, const Sizes& s) {
  return bias.numel() != s.batch * s.heads * s.queries * s.keys;
}

/// Memory for the gradient of a bias. An element of one that broadcasts is a sum of up to B H L S
/// terms, too many for float32. One that does not broadcast is stored element by element, and needs
/// zeros only where a window skips elements.
at::Tensor empty_grad_bias(const at::Tensor& bias, bool adds, bool has_window) {
  const at::TensorOptions options = adds ? bias.options().dtype(at::kDouble) : bias.options();
  return adds || has_window ? at::zeros(bias.sizes(), options) : at::empty(bias.sizes(), options);
}

/// Memory in which the kernels accumulate the gradient of `input`: in its layout, and in float32
/// for the 16-bit types.
at::Tensor empty_accumulator(bool needed, const at::Tensor& input) {
  return empty_grad(needed, input, compute_dtype(input.scalar_type()));
}

/// A forward pass, of a part of a call if `part` is not null. The constructor checks the call and
/// plans it, `run` computes it.
class Forward {
 public:
  Forward(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
          const AttentionOptions& o, const Part* part = nullptr)
      : sizes_(check_attention(query, key, value, o)),
        options_(kernel_options(o)),
        kernels_(kernels_for(query.scalar_type(), o.use_simd())),
        query_(rows_contiguous(query)),
        key_(rows_contiguous(key)),
        value_(rows_contiguous(value)),
        seed_(part != nullptr   ? part->seed
              : o.dropout() > 0 ? draw_seed()
                                : 0) {
    params_.shape = shape_of(sizes_);
    params_.score = score_params(options_, sizes_, params_.shape.head_dim, seed_);
    if (part != nullptr) {
      params_.is_part = !part->whole_rows;
      params_.score.dropout_origin = part->origin;
    }
    params_.storage = storage_of(query.scalar_type());
    params_.float_parts = float_parts_of("flash::attention", query.scalar_type());
    params_.query = rows_of(query_);
    params_.key = rows_of(key_);
    params_.value = rows_of(value_);
    params_.block_size = o.block_size();
    if (out_rows() > 0) plan_ = kernels_.forward_plan(params_);
  }

  const Sizes& sizes() const { return sizes_; }
  int64_t seed() const { return seed_; }

  /// Writes out, and row_stats unless that is null.
  void run(const at::Tensor& out, void* row_stats) {
    // Without rows, the other sizes may be too large for scratch memory in proportion to them.
    if (out_rows() == 0) return;
    params_.out_storage = storage_of(out.scalar_type());
    params_.out = mutable_rows_of(out);
    // Merging the parts of split keys would treat this part as the whole.
    const bool splits = !params_.is_part && splits_keys(params_);
    const at::ScalarType dtype = compute_dtype(out.scalar_type());
    const int64_t stats_bytes = out_rows() * static_cast<int64_t>(c10::elementSize(dtype));
    const Schedule schedule(plan_);
    const Scratch scratch(splits ? 0 : kernels_.forward_scratch_bytes(params_), schedule.threads,
                          row_stats == nullptr ? 2 * stats_bytes : 0);
    if (row_stats == nullptr) row_stats = scratch.shared();
    params_.row_max = row_stats;
    params_.row_sum = static_cast<uint8_t*>(row_stats) + stats_bytes;
    if (splits) return SplitKv(kernels_, params_, dtype).run();
    at::parallel_for(0, plan_.units, schedule.grain, [&](int64_t begin, int64_t end) {
      kernels_.forward(params_, begin, end, scratch.of_this_thread());
    });
  }

 private:
  int64_t out_rows() const {
    return params_.shape.batch * params_.shape.heads * params_.shape.queries;
  }

  const Sizes sizes_;
  const AttentionOptions options_;
  const TypedKernels& kernels_;
  const at::Tensor query_, key_, value_;
  const int64_t seed_;
  ForwardParams params_ = {};
  WorkPlan plan_;
};

ForwardResult forward_cpu(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                          const AttentionOptions& o) {
  Forward forward(query, key, value, o);
  at::Tensor out = empty_out(query, value, forward.sizes(), compute_dtype(query.scalar_type()));
  at::Tensor row_stats = empty_row_stats(query, forward.sizes());
  at::Tensor seed = empty_seed(query, o.dropout());
  if (o.dropout() > 0) *seed.mutable_data_ptr<int64_t>() = forward.seed();
  forward.run(out, row_stats.mutable_data_ptr());
  return {out, row_stats, seed};
}

ForwardPartResult forward_part_cpu(const at::Tensor& query, const at::Tensor& key,
                                   const at::Tensor& value, const at::Tensor& seed,
                                   at::IntArrayRef place, bool whole_rows,
                                   const AttentionOptions& o) {
  Part part = make_part(query, seed, place, o.dropout());
  part.whole_rows = whole_rows;
  Forward forward(query, key, value, o, &part);
  const at::Tensor out =
      empty_out(query, value, forward.sizes(), compute_dtype(query.scalar_type()));
  const at::Tensor row_stats = empty_row_stats(query, forward.sizes());
  forward.run(out, row_stats.mutable_data_ptr());
  return {out, row_stats};
}

/// The gradient of `option`, [H] or [B, H], from the term of each row, [B, H, L] (or [B, L]).
at::Tensor sum_rows(const at::Tensor& option, const at::Tensor& rows) {
  at::Tensor sums = rows.sum(-1, /*keepdim=*/false, at::kDouble);
  if (rows.dim() == 2) sums = sums.unsqueeze(1);
  if (option.dim() == 1) sums = sums.sum(0);
  return sums.to(option.scalar_type());
}

/// The gradients; those of query, key and value in `dtype`.
BackwardResult gradients(const at::Tensor& grad_out, const std::optional<at::Tensor>& grad_lse,
                         const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                         const at::Tensor& out, const at::Tensor& row_stats, const at::Tensor& seed,
                         const AttentionOptions& options, const Needed& needed,
                         const Origin& origin, at::ScalarType dtype) {
  const Sizes sizes = check_backward(grad_out, grad_lse, query, key, value, {out, row_stats, seed},
                                     options, needed);
  const AttentionOptions o = kernel_options(options);
  const TypedKernels& kernels = kernels_for(query.scalar_type(), o.use_simd());
  const at::Tensor q = rows_contiguous(query);
  const at::Tensor k = rows_contiguous(key);
  const at::Tensor v = rows_contiguous(value);
  const at::Tensor d_out = rows_contiguous(grad_out);
  // Contiguous as the forward made them, except under vmap, which may expand one row to many.
  const at::Tensor saved_out = rows_contiguous(out);
  const at::Tensor stats = row_stats.contiguous();
  const at::Tensor d_lse = grad_lse.has_value() ? grad_lse->contiguous() : at::Tensor();
  const at::Tensor d_query = empty_accumulator(needed[0], query);
  const at::Tensor d_key = empty_accumulator(needed[1], key);
  const at::Tensor d_value = empty_accumulator(needed[2], value);
  // Separate tensors even if not needed: the results of an operator must not share memory.
  at::Tensor d_bias = allocate({0}, query);
  at::Tensor d_slopes = allocate({0}, query);
  at::Tensor d_sinks = allocate({0}, query);

  BackwardParams p = {};
  p.shape = shape_of(sizes);
  p.score = score_params(o, sizes, p.shape.head_dim,
                         o.dropout() > 0 ? *seed.const_data_ptr<int64_t>() : 0);
  p.score.dropout_origin = origin;
  p.storage = storage_of(query.scalar_type());
  p.float_parts = float_parts_of("flash::attention", query.scalar_type());
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
    p.grad_bias_adds = broadcasts(*o.bias(), sizes);
    const bool has_window = p.score.window_left >= 0 || p.score.window_right >= 0;
    d_bias = empty_grad_bias(*o.bias(), p.grad_bias_adds, has_window);
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
  p.block_size = o.block_size();

  // Without queries, the other dimensions may be of any size, as they take no memory; but the units
  // of work are counted by them.
  const bool has_rows = stats.numel() > 0;
  const WorkPlan plan = has_rows ? kernels.backward_plan(p) : WorkPlan{};
  const Schedule schedule(plan);
  const Scratch scratch(has_rows ? kernels.backward_scratch_bytes(p) : 0, schedule.threads);
  run_steps(plan, schedule, [&](int64_t step, int64_t begin, int64_t end) {
    kernels.backward(p, step, begin, end, scratch.of_this_thread());
  });
  if (!has_rows) {
    for (const at::Tensor& sums : {d_key, d_value, d_bias}) sums.zero_();
  }
  if (needed[3]) d_bias = in_dtype(d_bias, o.bias()->scalar_type());
  if (needed[4]) d_slopes = sum_rows(*options.alibi_slopes(), slope_rows);
  if (needed[5]) d_sinks = sum_rows(*options.sinks(), sink_rows);
  return {in_dtype(d_query, dtype),
          in_dtype(d_key, dtype),
          in_dtype(d_value, dtype),
          d_bias,
          d_slopes,
          d_sinks};
}

BackwardResult backward_cpu(const at::Tensor& grad_out, const std::optional<at::Tensor>& grad_lse,
                            const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                            const at::Tensor& out, const at::Tensor& row_stats,
                            const at::Tensor& seed, const AttentionOptions& options,
                            Needed needed) {
  return gradients(grad_out, grad_lse, query, key, value, out, row_stats, seed, options, needed,
                   Origin{}, query.scalar_type());
}

BackwardResult backward_part_cpu(const at::Tensor& grad_out,
                                 const std::optional<at::Tensor>& grad_lse, const at::Tensor& query,
                                 const at::Tensor& key, const at::Tensor& value,
                                 const at::Tensor& out, const at::Tensor& row_stats,
                                 const at::Tensor& seed, at::IntArrayRef place,
                                 const AttentionOptions& options, Needed needed) {
  const Part part = make_part(query, seed, place, options.dropout());
  return gradients(grad_out, grad_lse, query, key, value, out, row_stats, seed, options, needed,
                   part.origin, compute_dtype(query.scalar_type()));
}

at::Tensor attention_cpu(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                         const AttentionOptions& o) {
  Forward forward(query, key, value, o);
  at::Tensor out = empty_out(query, value, forward.sizes());
  forward.run(out, nullptr);
  return out;
}

LseResult attention_with_lse_cpu(const at::Tensor& query, const at::Tensor& key,
                                 const at::Tensor& value, const AttentionOptions& o) {
  Forward forward(query, key, value, o);
  at::Tensor out = empty_out(query, value, forward.sizes());
  const at::Tensor row_stats = empty_row_stats(query, forward.sizes());
  forward.run(out, row_stats.mutable_data_ptr());
  return {out, log_sum_exp(row_stats)};
}

}  // namespace
}  // namespace flash

TORCH_LIBRARY_IMPL(flash, CPU, m) {
  using namespace flash;
  m.impl("attention", AttentionOperator<at::Tensor>::kernel<attention_cpu>);
  m.impl("attention_with_lse", AttentionOperator<LseResult>::kernel<attention_with_lse_cpu>);
  m.impl("_forward", ForwardOperator::kernel<forward_cpu>);
  m.impl("_backward", BackwardOperator::kernel<backward_cpu>);
  m.impl("_forward_part", ForwardPartOperator::kernel<forward_part_cpu>);
  m.impl("_backward_part", BackwardPartOperator::kernel<backward_part_cpu>);
}
