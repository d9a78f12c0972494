// CPU: packed sequences. Each sequence has its own plan; the units of all plans are one range for
// the threads.

#include <ATen/ATen.h>
#include <torch/library.h>

#include <algorithm>
#include <vector>

#include "ops/backward_checks.h"
#include "ops/dropout_mask.h"
#include "ops/dtypes.h"
#include "ops/kernel_params.h"
#include "ops/kernel_selection.h"
#include "ops/results.h"
#include "ops/schedule.h"
#include "ops/varlen.h"

namespace flash {
namespace {

using at::Tensor;

std::vector<int64_t> offsets_of(const char* name, const Tensor& offsets, int64_t rows) {
  const Tensor wide = offsets.to(at::kLong).contiguous();
  const auto* const data = wide.const_data_ptr<int64_t>();
  std::vector<int64_t> found(data, data + wide.numel());
  TORCH_CHECK_VALUE(found.front() == 0 && found.back() == rows, kVarlenOp, ": expected ", name,
                    " from 0 to the ", rows, " rows there are, got ", found.front(), " to ",
                    found.back());
  for (size_t n = 1; n < found.size(); ++n) {
    TORCH_CHECK_VALUE(found[n] >= found[n - 1], kVarlenOp, ": expected ", name,
                      " never to fall, got ", found[n - 1], " and then ", found[n], " at ", n);
  }
  return found;
}

/// The sequences of one call, and the kernel parameters that they share.
class Sequences {
 public:
  /// For a call that `check_packed` has checked; checks its offsets. The seed of its dropout is
  /// `saved_seed`, or drawn if that is null.
  Sequences(const Packed& packed, const AttentionOptions& options, const Tensor* saved_seed)
      : options_(kernel_options(options)) {
    query_ = rows_contiguous(packed.query);
    key_ = rows_contiguous(packed.key);
    value_ = rows_contiguous(packed.value);
    element_size_ = static_cast<int64_t>(c10::elementSize(compute_dtype(query_.scalar_type())));
    float_parts_ = float_parts_of(kVarlenOp, query_.scalar_type());
    queries_ = offsets_of("cu_seqlens_q", packed.cu_seqlens_q, query_.size(0));
    keys_ = offsets_of("cu_seqlens_k", packed.cu_seqlens_k, key_.size(0));
    AttentionOptions o = options_;
    o.alibi_slopes().reset(), o.sinks().reset();
    const Sizes sizes = check_attention(as_heads(query_), as_heads(key_), as_heads(value_), o);
    shape_ = shape_of(sizes);
    if (options.dropout() > 0) {
      seed_ = saved_seed != nullptr ? *saved_seed->const_data_ptr<int64_t>() : draw_seed();
    }
    score_ = score_params(options_, sizes, shape_.head_dim, seed_);
  }

  int64_t seed() const { return seed_; }

  int64_t count() const { return static_cast<int64_t>(queries_.size()) - 1; }
  const Shape& shape() const { return shape_; }
  int64_t rows() const { return queries_.back(); }

  /// Where sequence n begins in the concatenation of [H, L] for every sequence.
  int64_t row_offset(int64_t n) const { return shape_.heads * queries_[n]; }
  int64_t row_count(int64_t n) const { return shape_.heads * query_count(n); }
  int64_t query_count(int64_t n) const { return queries_[n + 1] - queries_[n]; }

  /// Fills what ForwardParams and BackwardParams have in common, for sequence n.
  template <class Params>
  void fill(int64_t n, Params& p) const {
    p.shape = shape_;
    p.shape.queries = query_count(n);
    p.shape.keys = keys_[n + 1] - keys_[n];
    p.score = score_;
    p.score.dropout_seed += static_cast<uint64_t>(n);  // its own dropout mask
    if (score_.sinks != nullptr) {
      p.score.sinks = advance(score_.sinks, n * score_.sink_strides[0], element_size_);
    }
    if (score_.alibi_slopes != nullptr) {
      p.score.alibi_slopes =
          advance(score_.alibi_slopes, n * score_.slope_strides[0], element_size_);
    }
    p.storage = storage_of(query_.scalar_type());
    p.float_parts = float_parts_;
    p.query = queries_of(n, query_);
    p.key = keys_of(n, key_);
    p.value = keys_of(n, value_);
    p.block_size = options_.block_size();
  }

  ConstRows queries_of(int64_t n, const Tensor& t) const {
    return at(queries_[n], rows_of(as_heads(t)), t);
  }
  ConstRows keys_of(int64_t n, const Tensor& t) const {
    return at(keys_[n], rows_of(as_heads(t)), t);
  }
  MutableRows mutable_queries_of(int64_t n, const Tensor& t) const {
    return at(queries_[n], mutable_rows_of(as_heads(t)), t);
  }
  MutableRows mutable_keys_of(int64_t n, const Tensor& t) const {
    return at(keys_[n], mutable_rows_of(as_heads(t)), t);
  }

 private:
  template <class Pointer>
  static RowsOf<Pointer> at(int64_t row, const RowsOf<Pointer>& rows, const Tensor& t) {
    return advance(rows, row * rows.strides.row, static_cast<int64_t>(t.element_size()));
  }

  Tensor query_, key_, value_;
  AttentionOptions options_;
  int64_t seed_ = 0;
  int64_t element_size_;  // of the dtype that the kernels compute in
  FloatParts float_parts_;
  std::vector<int64_t> queries_, keys_;
  Shape shape_;
  ScoreParams score_;
};

/// Calls run(n, unit_begin, unit_end) for all units of the plans that `takes` selects, as one range
/// for the threads.
template <class Takes, class Run>
void run_all(const std::vector<WorkPlan>& plans, const Takes& takes, const Run& run) {
  std::vector<int64_t> begins = {0}, sequences;
  WorkPlan all = {};
  for (size_t n = 0; n < plans.size(); ++n) {
    if (plans[n].units == 0 || !takes(static_cast<int64_t>(n))) continue;
    sequences.push_back(static_cast<int64_t>(n));
    begins.push_back(begins.back() + plans[n].units);
    all.flops_per_unit += plans[n].units * plans[n].flops_per_unit;
  }
  all.units = begins.back();
  if (all.units == 0) return;
  all.flops_per_unit /= all.units;
  run_units(all, [&](int64_t begin, int64_t end) {
    size_t i = static_cast<size_t>(std::upper_bound(begins.begin(), begins.end(), begin) -
                                   begins.begin()) -
               1;
    for (; begin < end; ++i) {
      const int64_t last = std::min(end, begins[i + 1]);
      run(sequences[i], begin - begins[i], last - begins[i]);
      begin = last;
    }
  });
}

VarlenForward forward_into(at::ScalarType out_dtype, const Tensor& query, const Tensor& key,
                           const Tensor& value, const Tensor& cu_seqlens_q,
                           const Tensor& cu_seqlens_k, const AttentionOptions& o) {
  const Packed packed = {query, key, value, cu_seqlens_q, cu_seqlens_k};
  check_packed(packed, o);
  const Sequences sequences(packed, o, /*saved_seed=*/nullptr);
  const TypedKernels& kernels = kernels_of(kVarlenOp, query.scalar_type(), o.use_simd());
  const Shape& s = sequences.shape();
  const at::ScalarType dtype = compute_dtype(query.scalar_type());
  const Tensor out = allocate({sequences.rows(), s.heads, s.value_dim}, query, out_dtype);
  const Tensor row_stats = allocate({2, sequences.rows() * s.heads}, query, dtype);
  const Tensor seed = empty_seed(query, o.dropout());
  if (o.dropout() > 0) *seed.mutable_data_ptr<int64_t>() = sequences.seed();

  std::vector<ForwardParams> params(static_cast<size_t>(sequences.count()));
  std::vector<WorkPlan> plans;
  int64_t scratch_bytes = 0;
  const auto size = static_cast<int64_t>(row_stats.element_size());
  for (int64_t n = 0; n < sequences.count(); ++n) {
    ForwardParams& p = params[static_cast<size_t>(n)];
    sequences.fill(n, p);
    p.out_storage = storage_of(out.scalar_type());
    p.out = sequences.mutable_queries_of(n, out);
    p.row_max = advance(row_stats.mutable_data_ptr(), sequences.row_offset(n), size);
    p.row_sum = advance(p.row_max, sequences.rows() * s.heads, size);
    plans.push_back(kernels.forward_plan(p));
    scratch_bytes = std::max(scratch_bytes, kernels.forward_scratch_bytes(p));
  }
  const Scratch scratch(scratch_bytes, at::get_num_threads());
  run_all(
      plans, [](int64_t) { return true; },
      [&](int64_t n, int64_t begin, int64_t end) {
        kernels.forward(params[static_cast<size_t>(n)], begin, end, scratch.of_this_thread());
      });
  return {out, row_stats, seed};
}

VarlenForward forward_cpu(const Tensor& query, const Tensor& key, const Tensor& value,
                          const Tensor& cu_seqlens_q, const Tensor& cu_seqlens_k,
                          const AttentionOptions& o) {
  return forward_into(compute_dtype(query.scalar_type()), query, key, value, cu_seqlens_q,
                      cu_seqlens_k, o);
}

Tensor output_cpu(const Tensor& query, const Tensor& key, const Tensor& value,
                  const Tensor& cu_seqlens_q, const Tensor& cu_seqlens_k,
                  const AttentionOptions& o) {
  return std::get<0>(
      forward_into(query.scalar_type(), query, key, value, cu_seqlens_q, cu_seqlens_k, o));
}

/// The gradient of `option`, [H] or [N, H], from the term of each row, [H, L] for every sequence.
Tensor sum_rows(const Tensor& option, const Tensor& rows, const Sequences& sequences) {
  const int64_t heads = sequences.shape().heads;
  std::vector<Tensor> sums;
  for (int64_t n = 0; n < sequences.count(); ++n) {
    sums.push_back(rows.narrow(0, sequences.row_offset(n), sequences.row_count(n))
                       .view({heads, sequences.query_count(n)})
                       .sum(-1, /*keepdim=*/false, at::kDouble));
  }
  const Tensor each =
      sums.empty() ? at::zeros({0, heads}, rows.options().dtype(at::kDouble)) : at::stack(sums);
  return (option.dim() == 1 ? each.sum(0) : each).to(option.scalar_type());
}

VarlenBackward backward_cpu(const Tensor& grad_out, const Tensor& query, const Tensor& key,
                            const Tensor& value, const Tensor& cu_seqlens_q,
                            const Tensor& cu_seqlens_k, const Tensor& out, const Tensor& row_stats,
                            const Tensor& seed, const AttentionOptions& o, VarlenNeeded needed) {
  const Packed packed = {query, key, value, cu_seqlens_q, cu_seqlens_k};
  check_packed_backward(grad_out, packed, {out, row_stats, seed}, o, needed);
  const Sequences sequences(packed, o, &seed);
  const TypedKernels& kernels = kernels_of(kVarlenOp, query.scalar_type(), o.use_simd());
  // Contiguous as the forward made them, unless the caller is not autograd.
  const Tensor d_out = rows_contiguous(grad_out), saved_out = rows_contiguous(out),
               stats = row_stats.contiguous();
  const auto gradient_of = [&](bool wanted, const Tensor& input) {
    const at::ScalarType dtype = compute_dtype(input.scalar_type());
    return wanted ? allocate(input.sym_sizes(), input, dtype) : allocate({0}, input, dtype);
  };
  const Tensor d_query = gradient_of(needed[0], query), d_key = gradient_of(needed[1], key),
               d_value = gradient_of(needed[2], value);
  const auto rows_if = [&](bool wanted) {
    return wanted ? allocate({stats.size(1)}, stats) : Tensor();
  };
  const Tensor slope_rows = rows_if(needed[3]), sink_rows = rows_if(needed[4]);
  const auto size = static_cast<int64_t>(stats.element_size());
  std::vector<BackwardParams> params(static_cast<size_t>(sequences.count()));
  std::vector<WorkPlan> plans;
  int64_t scratch_bytes = 0, steps = 0;
  for (int64_t n = 0; n < sequences.count(); ++n) {
    BackwardParams& p = params[static_cast<size_t>(n)];
    sequences.fill(n, p);
    p.out_storage = storage_of(out.scalar_type());
    p.out = sequences.queries_of(n, saved_out);
    p.grad_out_storage = storage_of(d_out.scalar_type());
    p.grad_out = sequences.queries_of(n, d_out);
    p.row_max = advance(stats.const_data_ptr(), sequences.row_offset(n), size);
    p.row_sum = advance(p.row_max, stats.size(1), size);
    if (needed[0]) p.grad_query = sequences.mutable_queries_of(n, d_query);
    if (needed[1]) p.grad_key = sequences.mutable_keys_of(n, d_key);
    if (needed[2]) p.grad_value = sequences.mutable_keys_of(n, d_value);
    const auto rows_of_sequence = [&](const Tensor& rows) {
      return advance(rows.mutable_data_ptr(), sequences.row_offset(n), size);
    };
    if (needed[3]) p.grad_slope_rows = rows_of_sequence(slope_rows);
    if (needed[4]) p.grad_sink_rows = rows_of_sequence(sink_rows);
    plans.push_back(kernels.backward_plan(p));
    steps = std::max(steps, plans.back().steps);
    scratch_bytes = std::max(scratch_bytes, kernels.backward_scratch_bytes(p));
  }
  if (stats.numel() > 0) {
    const Scratch scratch(scratch_bytes, at::get_num_threads());
    const auto of = [&](int64_t n) -> const BackwardParams& {
      return params[static_cast<size_t>(n)];
    };
    for (int64_t step = 0; step < steps; ++step) {
      run_all(
          plans, [&](int64_t n) { return step < plans[static_cast<size_t>(n)].steps; },
          [&](int64_t n, int64_t begin, int64_t end) {
            kernels.backward(of(n), step, begin, end, scratch.of_this_thread());
          });
    }
  } else {
    // Without queries, the other dimensions may be of any size, as in attention_cpu.cpp.
    for (const Tensor& sums : {d_query, d_key, d_value}) sums.zero_();
  }
  const at::ScalarType dtype = query.scalar_type();
  return {in_dtype(d_query, dtype), in_dtype(d_key, dtype), in_dtype(d_value, dtype),
          needed[3] ? sum_rows(*o.alibi_slopes(), slope_rows, sequences) : allocate({0}, query),
          needed[4] ? sum_rows(*o.sinks(), sink_rows, sequences) : allocate({0}, query)};
}

}  // namespace
}  // namespace flash

TORCH_LIBRARY_IMPL(flash, CPU, m) {
  using namespace flash;
  m.impl("varlen_attention", VarlenOperator<at::Tensor>::kernel<output_cpu>);
  m.impl("_varlen_forward", VarlenOperator<VarlenForward>::kernel<forward_cpu>);
  m.impl("_varlen_backward", VarlenBackwardOperator::kernel<backward_cpu>);
}
