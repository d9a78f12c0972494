// CPU: tensors to pointers and strides, and units of work to threads.

#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <ATen/Parallel.h>
#include <flash_attention/ops.h>
#include <torch/library.h>

#include <algorithm>

#include "csrc/kernels.h"
#include "ops/kernel_call.h"
#include "ops/operator.h"

namespace flash {
namespace {

const TypedKernels& kernels_for(at::ScalarType dtype, bool use_simd) {
  return kernels_of("flash::attention", dtype, use_simd);
}

/// Strides of [batch, heads, rows, columns]; a 3-D tensor is one head.
Strides strides_of(const at::Tensor& t) {
  return t.dim() == 4 ? Strides{t.stride(0), t.stride(1), t.stride(2)}
                      : Strides{t.stride(0), 0, t.stride(1)};
}

ConstRows rows_of(const at::Tensor& t) { return {t.const_data_ptr(), strides_of(t)}; }
MutableRows mutable_rows_of(const at::Tensor& t) { return {t.mutable_data_ptr(), strides_of(t)}; }

Shape shape_of(const Sizes& s) {
  const auto size = [](const c10::SymInt& n) { return n.expect_int(); };
  return {size(s.batch),   size(s.heads), size(s.key_heads), size(s.value_heads),
          size(s.queries), size(s.keys),  size(s.head_dim),  size(s.value_dim)};
}

/// Writes the strides of `t` broadcast to `rank` dimensions: 0 where it broadcasts.
void broadcast_strides(const at::Tensor& t, const Sizes& sizes, int64_t rank, int64_t* strides) {
  const int64_t inserted = missing_head_dimension(sizes, t.dim(), rank);
  std::fill(strides, strides + rank, 0);
  int64_t to = rank - 1;
  for (int64_t from = t.dim() - 1; from >= 0; --from, --to) {
    // Without a head dimension of its own, [B, L, S] steps over the head at index 1.
    if (inserted >= 0 && to == 1) --to;
    if (t.size(from) != 1) strides[to] = t.stride(from);
  }
}

ScoreParams score_params(const CallOptions& o, const Sizes& sizes, int64_t head_dim, int64_t seed) {
  ScoreParams p = {};
  p.scale = resolve_scale(o.scale, head_dim);
  p.causal = o.causal;
  if (o.bias.has_value()) {
    p.bias_kind = o.bias->scalar_type() == at::kBool ? BiasKind::kBoolean : BiasKind::kAdditive;
    p.bias = o.bias->const_data_ptr();
    broadcast_strides(*o.bias, sizes, 4, p.bias_strides);
  }
  if (o.query_positions.has_value()) {
    p.positions = o.query_positions->const_data_ptr<int64_t>();
    broadcast_strides(*o.query_positions, sizes, 3, p.position_strides);
  }
  p.dropout = o.dropout;
  p.dropout_seed = static_cast<uint64_t>(seed);
  return p;
}

/// How many units a thread takes at least, and how many threads that leaves something to do.
struct Schedule {
  explicit Schedule(const WorkPlan& plan) {
    grain = units_per_thread(plan);
    const int64_t available = at::in_parallel_region() ? 1 : at::get_num_threads();
    threads = std::max<int64_t>(1, std::min(available, (plan.units + grain - 1) / grain));
  }
  int64_t grain;
  int64_t threads;
};

/// Memory for each thread, and some for all of them.
class Scratch {
 public:
  Scratch(int64_t bytes, int64_t threads, int64_t shared_bytes = 0)
      : bytes_(bytes),
        threads_(threads),
        memory_(at::detail::empty_cpu({bytes * threads + shared_bytes}, at::kByte)) {}
  void* of_this_thread() const { return at(at::get_thread_num()); }
  void* shared() const { return at(threads_); }

 private:
  void* at(int64_t thread) const { return memory_.mutable_data_ptr<uint8_t>() + bytes_ * thread; }

  int64_t bytes_, threads_;
  at::Tensor memory_;
};

/// Whether one element of the bias belongs to several scores, or to none.
bool broadcasts(const at::Tensor& bias, const Sizes& s) {
  return bias.numel() != s.batch * s.heads * s.queries * s.keys;
}

/// What the gradient of a bias is gathered in. One that broadcasts sums up to B H L S numbers into
/// one, too many for float32. One that does not is written number by number, and needs zeros only
/// where the causal limit leaves numbers out.
at::Tensor grad_bias_memory(const at::Tensor& bias, bool adds, bool causal) {
  const at::TensorOptions options = adds ? bias.options().dtype(at::kDouble) : bias.options();
  return adds || causal ? at::zeros(bias.sizes(), options) : at::empty(bias.sizes(), options);
}

/// A forward pass up to where its results go.
class Forward {
 public:
  Forward(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
          const CallOptions& o)
      : sizes_(
            check_attention(query, key, value, o.bias, o.query_positions, o.dropout, o.block_size)),
        kernels_(kernels_for(query.scalar_type(), o.use_simd)),
        query_(rows_contiguous(query)),
        key_(rows_contiguous(key)),
        value_(rows_contiguous(value)),
        seed_(o.dropout > 0 ? draw_seed() : 0) {
    params_.shape = shape_of(sizes_);
    params_.score = score_params(o, sizes_, params_.shape.head_dim, seed_);
    params_.query = rows_of(query_);
    params_.key = rows_of(key_);
    params_.value = rows_of(value_);
    params_.block_size = o.block_size;
    plan_ = kernels_.forward_plan(params_);
    scratch_bytes_ =
        kernels_.forward_scratch_bytes(params_.shape, o.block_size, o.bias.has_value());
  }

  const Sizes& sizes() const { return sizes_; }
  int64_t seed() const { return seed_; }

  /// Writes row_stats where it is told to, or else to memory of its own.
  void run(const at::Tensor& out, void* row_stats) {
    const Schedule schedule(plan_);
    const int64_t stats_bytes = out_rows() * static_cast<int64_t>(out.element_size());
    const Scratch scratch(scratch_bytes_, schedule.threads,
                          row_stats == nullptr ? 2 * stats_bytes : 0);
    if (row_stats == nullptr) row_stats = scratch.shared();
    params_.out = mutable_rows_of(out);
    params_.row_max = row_stats;
    params_.row_sum = static_cast<uint8_t*>(row_stats) + stats_bytes;
    at::parallel_for(0, plan_.units, schedule.grain, [&](int64_t begin, int64_t end) {
      kernels_.forward(params_, begin, end, scratch.of_this_thread());
    });
  }

 private:
  int64_t out_rows() const {
    return params_.shape.batch * params_.shape.heads * params_.shape.queries;
  }

  const Sizes sizes_;
  const TypedKernels& kernels_;
  const at::Tensor query_, key_, value_;
  const int64_t seed_;
  ForwardParams params_ = {};
  WorkPlan plan_;
  int64_t scratch_bytes_;
};

ForwardResult forward_cpu(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                          const std::optional<at::Tensor>& bias, bool causal,
                          const std::optional<at::Tensor>& query_positions,
                          std::optional<double> scale, double dropout, int64_t block_size,
                          bool use_simd) {
  Forward forward(query, key, value,
                  {bias, causal, query_positions, scale, dropout, block_size, use_simd});
  at::Tensor out = empty_out(query, value, forward.sizes());
  at::Tensor row_stats = empty_row_stats(query, forward.sizes());
  at::Tensor seed = empty_seed(query, dropout);
  if (dropout > 0) *seed.mutable_data_ptr<int64_t>() = forward.seed();
  forward.run(out, row_stats.mutable_data_ptr());
  return {out, row_stats, seed};
}

BackwardResult backward_cpu(const at::Tensor& grad_out, const std::optional<at::Tensor>& grad_lse,
                            const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                            const at::Tensor& out, const at::Tensor& row_stats,
                            const at::Tensor& seed, const std::optional<at::Tensor>& bias,
                            bool causal, const std::optional<at::Tensor>& query_positions,
                            std::optional<double> scale, double dropout, int64_t block_size,
                            bool use_simd, std::array<bool, 4> needed) {
  const Sizes sizes =
      check_attention(query, key, value, bias, query_positions, dropout, block_size);
  const TypedKernels& kernels = kernels_for(query.scalar_type(), use_simd);
  const at::Tensor q = rows_contiguous(query);
  const at::Tensor k = rows_contiguous(key);
  const at::Tensor v = rows_contiguous(value);
  const at::Tensor d_out = rows_contiguous(grad_out);
  const at::Tensor d_lse = grad_lse.has_value() ? grad_lse->contiguous() : at::Tensor();
  const at::Tensor d_query = empty_grad(needed[0], query);
  const at::Tensor d_key = empty_grad(needed[1], key);
  const at::Tensor d_value = empty_grad(needed[2], value);
  at::Tensor d_bias = allocate({0}, query);
  const bool bias_broadcasts = needed[3] && broadcasts(*bias, sizes);
  if (needed[3]) d_bias = grad_bias_memory(*bias, bias_broadcasts, causal);

  BackwardParams p = {};
  p.shape = shape_of(sizes);
  p.score =
      score_params({bias, causal, query_positions, scale, dropout, block_size, use_simd}, sizes,
                   p.shape.head_dim, dropout > 0 ? *seed.const_data_ptr<int64_t>() : 0);
  p.query = rows_of(q);
  p.key = rows_of(k);
  p.value = rows_of(v);
  p.out = rows_of(out);
  p.grad_out = rows_of(d_out);
  p.row_max = row_stats.const_data_ptr();
  p.row_sum = static_cast<const uint8_t*>(p.row_max) + row_stats.nbytes() / 2;
  p.grad_lse = d_lse.defined() ? d_lse.const_data_ptr() : nullptr;
  if (needed[0]) p.grad_query = mutable_rows_of(d_query);
  if (needed[1]) p.grad_key = mutable_rows_of(d_key);
  if (needed[2]) p.grad_value = mutable_rows_of(d_value);
  if (needed[3]) {
    p.grad_bias = d_bias.mutable_data_ptr();
    p.grad_bias_adds = bias_broadcasts;
    p.grad_bias_is_double = d_bias.scalar_type() == at::kDouble;
    broadcast_strides(d_bias, sizes, 4, p.grad_bias_strides);
  }
  p.block_size = block_size;

  const WorkPlan plan = kernels.backward_plan(p);
  const Schedule schedule(plan);
  const Scratch scratch(kernels.backward_scratch_bytes(p.shape, block_size, bias.has_value()),
                        schedule.threads);
  for (int64_t step = 0; step < plan.steps; ++step) {
    at::parallel_for(0, plan.units, schedule.grain, [&](int64_t begin, int64_t end) {
      kernels.backward(p, step, begin, end, scratch.of_this_thread());
    });
  }
  if (kernels.backward_needs_finish(p)) {
    at::parallel_for(0, plan.units, schedule.grain, [&](int64_t begin, int64_t end) {
      kernels.backward_finish(p, begin, end, scratch.of_this_thread());
    });
  }
  return {d_query, d_key, d_value, d_bias.to(query.scalar_type())};
}

at::Tensor attention_cpu(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                         const std::optional<at::Tensor>& bias, bool causal,
                         const std::optional<at::Tensor>& query_positions,
                         std::optional<double> scale, double dropout, int64_t block_size,
                         bool use_simd) {
  Forward forward(query, key, value,
                  {bias, causal, query_positions, scale, dropout, block_size, use_simd});
  at::Tensor out = empty_out(query, value, forward.sizes());
  forward.run(out, nullptr);
  return out;
}

std::tuple<at::Tensor, at::Tensor> attention_with_lse_cpu(
    const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
    const std::optional<at::Tensor>& bias, bool causal,
    const std::optional<at::Tensor>& query_positions, std::optional<double> scale, double dropout,
    int64_t block_size, bool use_simd) {
  const auto [out, row_stats, seed] = forward_cpu(query, key, value, bias, causal, query_positions,
                                                  scale, dropout, block_size, use_simd);
  return {out, log_sum_exp(row_stats)};
}

}  // namespace

MemoryUsage attention_memory(int64_t batch, int64_t heads, int64_t queries, int64_t keys,
                             int64_t head_dim, int64_t value_dim, at::ScalarType dtype,
                             int64_t block_size, bool use_simd, bool has_bias) {
  TORCH_CHECK_VALUE(
      batch >= 0 && heads >= 0 && queries >= 0 && keys >= 0 && head_dim >= 0 && value_dim >= 0,
      "flash::attention_memory: expected sizes of at least 0, got batch ", batch, ", heads ", heads,
      ", queries ", queries, ", keys ", keys, ", head_dim ", head_dim, ", value_dim ", value_dim);
  TORCH_CHECK_NOT_IMPLEMENTED(dtype != at::kHalf && dtype != at::kBFloat16,
                              "flash::attention_memory: expected dtype float32 or float64, got ",
                              dtype, ", which has no kernel yet");
  TORCH_CHECK_TYPE(dtype == at::kFloat || dtype == at::kDouble,
                   "flash::attention_memory: expected dtype float32 or float64, got ", dtype);
  TORCH_CHECK_VALUE(block_size >= 1,
                    "flash::attention_memory: expected block_size of at least 1, got ", block_size);
  const TypedKernels& kernels = kernels_for(dtype, use_simd);
  ForwardParams forward = {};
  forward.shape = {batch, heads, heads, heads, queries, keys, head_dim, value_dim};
  forward.block_size = block_size;
  BackwardParams backward = {};
  backward.shape = forward.shape;
  backward.block_size = block_size;
  const auto scratch = [](const WorkPlan& plan, int64_t bytes) {
    return Schedule(plan).threads * bytes;
  };
  const int64_t rows = 2 * batch * heads * queries * static_cast<int64_t>(at::elementSize(dtype));
  return {rows + scratch(kernels.forward_plan(forward),
                         kernels.forward_scratch_bytes(forward.shape, block_size, has_bias)),
          scratch(kernels.backward_plan(backward),
                  kernels.backward_scratch_bytes(backward.shape, block_size, has_bias))};
}

}  // namespace flash

TORCH_LIBRARY_IMPL(flash, CPU, m) {
  m.impl("attention", flash::attention_cpu);
  m.impl("attention_with_lse", flash::attention_with_lse_cpu);
  m.impl("_forward", flash::forward_cpu);
  m.impl("_backward", flash::backward_cpu);
}

TORCH_LIBRARY_FRAGMENT(flash, m) {
  m.def(
      "attention_memory(int batch, int heads, int queries, int keys, int head_dim, int value_dim, "
      "ScalarType dtype, int block_size=64, bool use_simd=True, bool has_bias=False) "
      "-> (int forward, int backward)",
      [](int64_t batch, int64_t heads, int64_t queries, int64_t keys, int64_t head_dim,
         int64_t value_dim, at::ScalarType dtype, int64_t block_size, bool use_simd,
         bool has_bias) {
        const flash::MemoryUsage bytes =
            flash::attention_memory(batch, heads, queries, keys, head_dim, value_dim, dtype,
                                    block_size, use_simd, has_bias);
        return std::make_tuple(bytes.forward, bytes.backward);
      });
}
