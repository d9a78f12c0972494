#pragma once
// A small attention problem, its answer in long double by the definition, and the kernels' answer.

#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <new>
#include <random>
#include <vector>

#include "csrc/kernels.h"
#include "csrc/philox.h"
#include "tests/csrc/isa.h"

namespace flash::testing {

struct Options {
  bool causal = false;
  double dropout = 0;
  bool bias = false;
  int64_t block_size = 64;
  int64_t left = -1, right = -1;  ///< of the window; causal makes right 0
  double softcap = 0;
  bool slopes = false, sinks = false;
};

/// Inputs of one problem, contiguous, standard normal.
template <class T>
struct Problem {
  Shape shape;
  Options options;
  double scale;
  std::vector<T> q, k, v, bias, grad_out;
  std::vector<T> slopes, sinks;  ///< [batch, heads] and [heads], or empty

  Problem(Shape s, Options o, uint64_t seed = 1)
      : shape(s), options(o), scale(1 / std::sqrt(static_cast<double>(s.head_dim))) {
    std::mt19937_64 random(seed);
    std::normal_distribution<double> normal;
    const auto fill = [&](std::vector<T>& x, int64_t size) {
      x.resize(size);
      for (T& value : x) value = static_cast<T>(normal(random));
    };
    fill(q, s.batch * s.heads * s.queries * s.head_dim);
    fill(k, s.batch * s.key_heads * s.keys * s.head_dim);
    fill(v, s.batch * s.value_heads * s.keys * s.value_dim);
    fill(grad_out, s.batch * s.heads * s.queries * s.value_dim);
    if (o.bias) fill(bias, s.batch * s.heads * s.queries * s.keys);
    if (o.slopes) fill(slopes, s.batch * s.heads);
    for (T& slope : slopes) slope = std::abs(slope) / 4;
    if (o.sinks) fill(sinks, s.heads);
  }
};

struct Answer {
  std::vector<double> out, dq, dk, dv, dbias;
  std::vector<double> dslopes, dsinks;  ///< of rows: what each adds to the gradient
};

inline constexpr uint64_t kSeed = 0x123456789abcdefull;

/// softmax(softcap(scale q k^T) - slope |distance| + bias) v over the window and the sink, and its
/// gradients, one row at a time.
template <class T>
Answer reference(const Problem<T>& p) {
  using Real = long double;
  const Shape& s = p.shape;
  Answer a;
  a.out.resize(p.grad_out.size());
  a.dq.resize(p.q.size());
  a.dk.resize(p.k.size());
  a.dv.resize(p.v.size());
  a.dbias.resize(p.bias.size());
  a.dslopes.resize(p.slopes.empty() ? 0 : s.batch * s.heads * s.queries);
  a.dsinks.resize(p.sinks.empty() ? 0 : s.batch * s.heads * s.queries);
  const Real keep = dropout_keep_scale(p.options.dropout);
  std::vector<Real> weight(s.keys), grad(s.keys), kept(s.keys), slope_of_cap(s.keys);
  const Real cap = p.options.softcap;
  const int64_t left = p.options.left, right = p.options.causal ? 0 : p.options.right;
  for (int64_t bh = 0; bh < s.batch * s.heads; ++bh) {
    const int64_t b = bh / s.heads, h = bh % s.heads;
    const int64_t kh = b * s.key_heads + h / (s.heads / s.key_heads);
    const int64_t vh = b * s.value_heads + h / (s.heads / s.value_heads);
    for (int64_t i = 0; i < s.queries; ++i) {
      const T* q = &p.q[(bh * s.queries + i) * s.head_dim];
      const T* go = &p.grad_out[(bh * s.queries + i) * s.value_dim];
      const int64_t position = i + s.keys - s.queries;
      const int64_t begin = left < 0 ? 0 : std::max<int64_t>(0, position - left);
      const int64_t end = right < 0 ? s.keys : std::min(s.keys, position + right + 1);
      Real max = -std::numeric_limits<Real>::infinity(), sum = 0, delta = 0;
      if (!p.sinks.empty()) max = p.sinks[h];
      for (int64_t j = begin; j < end; ++j) {
        Real dot = 0;
        for (int64_t d = 0; d < s.head_dim; ++d)
          dot += Real(q[d]) * p.k[(kh * s.keys + j) * s.head_dim + d];
        weight[j] = dot * Real(p.scale);
        slope_of_cap[j] = 1;
        if (cap > 0) {
          const Real tangent = std::tanh(weight[j] / cap);
          weight[j] = cap * tangent;
          slope_of_cap[j] = 1 - tangent * tangent;
        }
        if (!p.slopes.empty()) weight[j] -= p.slopes[bh] * Real(std::abs(position - j));
        if (p.options.bias) weight[j] += p.bias[(bh * s.queries + i) * s.keys + j];
        max = std::max(max, weight[j]);
      }
      if (!p.sinks.empty()) sum = std::exp(p.sinks[h] - max);
      for (int64_t j = begin; j < end; ++j) sum += weight[j] = std::exp(weight[j] - max);
      for (int64_t j = begin; j < end; ++j) {
        uint32_t word[4][1];
        dropout_words<ScalarCounters, 1>(philox_key(kSeed), bh, i, j / 4, word);
        kept[j] = word[j % 4][0] >= dropout_threshold(p.options.dropout) ? keep : Real(0);
        weight[j] /= sum;
        grad[j] = 0;
        for (int64_t d = 0; d < s.value_dim; ++d) {
          const int64_t at = (vh * s.keys + j) * s.value_dim + d;
          a.out[(bh * s.queries + i) * s.value_dim + d] += weight[j] * kept[j] * p.v[at];
          a.dv[at] += weight[j] * kept[j] * go[d];
          grad[j] += Real(go[d]) * p.v[at] * kept[j];
        }
        delta += weight[j] * grad[j];
      }
      if (!p.sinks.empty())
        a.dsinks[bh * s.queries + i] = -std::exp(p.sinks[h] - max) / sum * delta;
      for (int64_t j = begin; j < end; ++j) {
        Real ds = weight[j] * (grad[j] - delta);
        if (p.options.bias) a.dbias[(bh * s.queries + i) * s.keys + j] = ds;
        if (!p.slopes.empty()) a.dslopes[bh * s.queries + i] -= ds * Real(std::abs(position - j));
        ds *= slope_of_cap[j];
        for (int64_t d = 0; d < s.head_dim; ++d) {
          const int64_t at = (kh * s.keys + j) * s.head_dim + d;
          a.dq[(bh * s.queries + i) * s.head_dim + d] += ds * Real(p.scale) * p.k[at];
          a.dk[at] += ds * Real(p.scale) * q[d];
        }
      }
    }
  }
  return a;
}

/// Exactly `bytes` of 64-byte aligned memory: what a kernel writes past it, a sanitizer sees.
class AlignedMemory {
 public:
  explicit AlignedMemory(int64_t bytes) : data_(::operator new(bytes, std::align_val_t(64))) {}
  ~AlignedMemory() { ::operator delete(data_, std::align_val_t(64)); }
  AlignedMemory(const AlignedMemory&) = delete;
  void* get() const { return data_; }

 private:
  void* data_;
};

/// Forward and backward of a kernel table, every unit of a step in one range or one by one.
template <class T>
Answer run(const KernelTable& table, const Problem<T>& p, bool one_by_one = false) {
  const Shape& s = p.shape;
  const TypedKernels& kernels = typed<T>(table);
  const int64_t rows = s.batch * s.heads * s.queries;
  std::vector<T> out(p.grad_out.size()), row_max(rows), row_sum(rows);
  std::vector<T> dq(p.q.size(), 9), dk(p.k.size(), 9), dv(p.v.size(), 9), dbias(p.bias.size());
  std::vector<T> dslopes(p.slopes.empty() ? 0 : rows, 9), dsinks(p.sinks.empty() ? 0 : rows, 9);
  const auto strides = [](int64_t heads, int64_t length, int64_t width) {
    return Strides{heads * length * width, length * width, width};
  };
  const Strides query = strides(s.heads, s.queries, s.head_dim);
  const Strides key = strides(s.key_heads, s.keys, s.head_dim);
  const Strides value = strides(s.value_heads, s.keys, s.value_dim);
  const Strides output = strides(s.heads, s.queries, s.value_dim);
  ScoreParams score = {};
  score.scale = p.scale;
  score.window_left = p.options.left;
  score.window_right = p.options.causal ? 0 : p.options.right;
  score.softcap = p.options.softcap;
  if (!p.slopes.empty()) {
    score.alibi_slopes = p.slopes.data();
    score.slope_strides[0] = s.heads;
    score.slope_strides[1] = 1;
  }
  if (!p.sinks.empty()) {
    score.sinks = p.sinks.data();
    score.sink_strides[0] = 0;
    score.sink_strides[1] = 1;
  }
  score.dropout = p.options.dropout;
  score.dropout_seed = kSeed;
  const int64_t bias_strides[4] = {s.heads * s.queries * s.keys, s.queries * s.keys, s.keys, 1};
  if (p.options.bias) {
    score.bias_kind = BiasKind::kAdditive;
    score.bias = p.bias.data();
    std::copy(bias_strides, bias_strides + 4, score.bias_strides);
  }
  const auto over_units = [&](int64_t units, auto&& range) {
    if (!one_by_one) return range(0, units);
    for (int64_t unit = units - 1; unit >= 0; --unit) range(unit, unit + 1);
  };

  const ForwardParams forward = {.shape = s,
                                 .score = score,
                                 .storage = Storage::kNative,
                                 .query = {p.q.data(), query},
                                 .key = {p.k.data(), key},
                                 .value = {p.v.data(), value},
                                 .out_storage = Storage::kNative,
                                 .out = {out.data(), output},
                                 .row_max = row_max.data(),
                                 .row_sum = row_sum.data(),
                                 .block_size = p.options.block_size};
  const AlignedMemory forward_scratch(kernels.forward_scratch_bytes(forward));
  over_units(kernels.forward_plan(forward).units, [&](int64_t begin, int64_t end) {
    kernels.forward(forward, begin, end, forward_scratch.get());
  });

  BackwardParams backward = {};
  backward.shape = s;
  backward.score = score;
  backward.query = {p.q.data(), query};
  backward.key = {p.k.data(), key};
  backward.value = {p.v.data(), value};
  backward.out = {out.data(), output};
  backward.grad_out = {p.grad_out.data(), output};
  backward.row_max = row_max.data();
  backward.row_sum = row_sum.data();
  if (!p.slopes.empty()) backward.grad_slope_rows = dslopes.data();
  if (!p.sinks.empty()) backward.grad_sink_rows = dsinks.data();
  backward.grad_query = {dq.data(), query};
  backward.grad_key = {dk.data(), key};
  backward.grad_value = {dv.data(), value};
  if (p.options.bias) backward.grad_bias = dbias.data();
  backward.grad_bias_adds = p.options.causal;  // added or stored: two ways to the same gradient
  backward.grad_bias_is_double = sizeof(T) == 8;
  backward.block_size = p.options.block_size;
  std::copy(bias_strides, bias_strides + 4, backward.grad_bias_strides);
  const AlignedMemory scratch(kernels.backward_scratch_bytes(backward));
  const WorkPlan plan = kernels.backward_plan(backward);
  for (int64_t step = 0; step < plan.steps; ++step) {
    over_units(plan.units, [&](int64_t begin, int64_t end) {
      kernels.backward(backward, step, begin, end, scratch.get());
    });
  }
  const auto as_double = [](const std::vector<T>& x) {
    return std::vector<double>(x.begin(), x.end());
  };
  return {as_double(out),   as_double(dq),      as_double(dk),    as_double(dv),
          as_double(dbias), as_double(dslopes), as_double(dsinks)};
}

}  // namespace flash::testing
