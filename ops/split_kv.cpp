#include "ops/split_kv.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>
#include <vector>

#include "ops/kernel_params.h"
#include "ops/schedule.h"

namespace flash {
namespace {

/// position - keys, or the least int64 if that overflows: such a position is before every key.
int64_t position_in_part(int64_t position, int64_t keys) {
  int64_t result;
  return __builtin_sub_overflow(position, keys, &result) ? std::numeric_limits<int64_t>::min()
                                                         : result;
}

}  // namespace

/// Pointers into the memory that `run` allocates.
struct SplitKv::Memory {
  int64_t* positions;  // [batch or 1, part, heads or 1, queries], relative to the part's first key
  uint8_t* out;        // [batch, part, heads, queries, value_dim]
  uint8_t* row_max;    // [batch, part, heads, queries]
  uint8_t* row_sum;
};

SplitKv::SplitKv(const TypedKernels& kernels, const ForwardParams& params, at::ScalarType dtype)
    : kernels_(kernels),
      params_(params),
      dtype_(dtype),
      size_(static_cast<int64_t>(c10::elementSize(dtype))),
      stored_size_(stored_size(params.storage, size_)),
      whole_parts_(params.shape.keys / kDecodeKeys) {
  ForwardParams whole = params, last = params;
  whole.out_storage = last.out_storage = Storage::kNative;
  whole.shape.batch = whole_parts_, whole.shape.keys = kDecodeKeys;
  last.shape.batch = 1, last.shape.keys = params.shape.keys % kDecodeKeys;
  whole_plan_ = kernels.forward_plan(whole);
  last_plan_ = last.shape.keys > 0 ? kernels.forward_plan(last) : WorkPlan{};
  scratch_bytes_ =
      std::max(kernels.forward_scratch_bytes(whole), kernels.forward_scratch_bytes(last));
}

int64_t SplitKv::parts() const {
  return whole_parts_ + (params_.shape.keys % kDecodeKeys > 0 ? 1 : 0);
}
int64_t SplitKv::results() const {
  const Shape& s = params_.shape;
  return s.batch * parts() * s.heads * s.queries;
}
int64_t SplitKv::result_bytes() const { return results() * (params_.shape.value_dim + 2) * size_; }

int64_t SplitKv::position_count() const {
  const Shape& s = params_.shape;
  const bool given = params_.score.positions != nullptr;
  return (given ? s.batch * s.heads : 1) * parts() * s.queries;
}

int64_t SplitKv::bytes() const {
  const WorkPlan all = {params_.shape.batch * (whole_plan_.units + last_plan_.units), 1,
                        whole_plan_.flops_per_unit};
  return Schedule(all).threads * scratch_bytes_ + result_bytes() +
         position_count() * static_cast<int64_t>(sizeof(int64_t));
}

void SplitKv::fill_positions(int64_t* positions) const {
  const Shape& s = params_.shape;
  const ScoreParams& score = params_.score;
  const bool given = score.positions != nullptr;
  const int64_t* strides = score.position_strides;
  for (int64_t b = 0; b < (given ? s.batch : 1); ++b) {
    for (int64_t part = 0; part < parts(); ++part) {
      for (int64_t h = 0; h < (given ? s.heads : 1); ++h) {
        for (int64_t i = 0; i < s.queries; ++i) {
          const int64_t position =
              given ? score.positions[b * strides[0] + h * strides[1] + i * strides[2]]
                    : i + s.keys - s.queries;
          *positions++ = position_in_part(position, part * kDecodeKeys);
        }
      }
    }
  }
}

/// Parts first … first + count - 1 of one batch element, as the elements of a batch.
ForwardParams SplitKv::part_params(int64_t batch, int64_t first, int64_t count,
                                   const Memory& memory) const {
  const int64_t key = first * kDecodeKeys;
  ForwardParams p = params_;
  p.is_part = true;
  p.shape.batch = count;
  p.shape.keys = std::min(kDecodeKeys, params_.shape.keys - key);
  const Shape& s = p.shape;
  p.query = advance(params_.query, batch * params_.query.strides.batch, stored_size_);
  p.query.strides.batch = 0;
  const auto keys_of = [&](const ConstRows& rows) {
    ConstRows part =
        advance(rows, batch * rows.strides.batch + key * rows.strides.row, stored_size_);
    part.strides.batch = kDecodeKeys * rows.strides.row;
    return part;
  };
  p.key = keys_of(params_.key);
  p.value = keys_of(params_.value);

  const int64_t at = (batch * parts() + first) * s.heads * s.queries;
  p.out_storage = Storage::kNative;
  p.out = {memory.out + at * s.value_dim * size_,
           {s.heads * s.queries * s.value_dim, s.queries * s.value_dim, s.value_dim}};
  p.row_max = memory.row_max + at * size_;
  p.row_sum = memory.row_sum + at * size_;

  ScoreParams& score = p.score;
  const bool given = score.positions != nullptr;
  const int64_t heads = given ? s.heads : 1;
  score.positions = memory.positions + ((given ? batch : 0) * parts() + first) * heads * s.queries;
  score.position_strides[0] = heads * s.queries;
  score.position_strides[1] = given ? s.queries : 0;
  score.position_strides[2] = 1;
  if (score.bias != nullptr) {
    const int64_t size =
        score.bias_kind == BiasKind::kBoolean ? 1 : stored_size(score.bias_storage, size_);
    score.bias =
        advance(score.bias, batch * score.bias_strides[0] + key * score.bias_strides[3], size);
    score.bias_strides[0] = kDecodeKeys * score.bias_strides[3];
  }
  if (score.alibi_slopes != nullptr) {
    score.alibi_slopes = advance(score.alibi_slopes, batch * score.slope_strides[0], size_);
    score.slope_strides[0] = 0;
  }
  score.sinks = nullptr;  // `merge` adds each of them once
  return p;
}

void SplitKv::run() const {
  const Shape& s = params_.shape;
  const int64_t per_batch = whole_plan_.units + last_plan_.units;
  const WorkPlan all = {s.batch * per_batch, 1, whole_plan_.flops_per_unit};
  const Schedule schedule(all);
  const Scratch scratch(scratch_bytes_, schedule.threads,
                        result_bytes() + position_count() * static_cast<int64_t>(sizeof(int64_t)));
  Memory memory;
  memory.positions = static_cast<int64_t*>(scratch.shared());
  memory.out = reinterpret_cast<uint8_t*>(memory.positions + position_count());
  memory.row_max = memory.out + results() * s.value_dim * size_;
  memory.row_sum = memory.row_max + results() * size_;
  fill_positions(memory.positions);
  at::parallel_for(0, all.units, schedule.grain, [&](int64_t begin, int64_t end) {
    while (begin < end) {
      const int64_t batch = begin / per_batch, unit = begin % per_batch;
      const bool last = unit >= whole_plan_.units;
      const ForwardParams p = last ? part_params(batch, whole_parts_, 1, memory)
                                   : part_params(batch, 0, whole_parts_, memory);
      const int64_t first = last ? unit - whole_plan_.units : unit;
      const int64_t limit = last ? last_plan_.units : whole_plan_.units;
      const int64_t count = std::min(end - begin, limit - first);
      kernels_.forward(p, first, first + count, scratch.of_this_thread());
      begin += count;
    }
  });
  AT_DISPATCH_FLOATING_TYPES(dtype_, "flash::attention", [&] { merge<scalar_t>(memory); });
}

/// Writes a row of the result in its dtype.
template <class T>
void SplitKv::store(const std::vector<T>& row, int64_t at) const {
  const auto store_as = [&](auto* out) {
    using Stored = std::remove_pointer_t<decltype(out)>;
    std::transform(row.begin(), row.end(), out + at, [](T x) { return static_cast<Stored>(x); });
  };
  switch (params_.out_storage) {
    case Storage::kBFloat16:
      return store_as(static_cast<c10::BFloat16*>(params_.out.data));
    case Storage::kHalf:
      return store_as(static_cast<c10::Half*>(params_.out.data));
    case Storage::kNative:
      return store_as(static_cast<T*>(params_.out.data));
  }
}

/// out = sum_c w_c out_c / (e^(sink - max) + sum_c w_c) with w_c = row_sum_c e^(row_max_c - max),
/// over the parts c.
template <class T>
void SplitKv::merge(const Memory& memory) const {
  constexpr T kMinusInf = -std::numeric_limits<T>::infinity();
  const Shape& s = params_.shape;
  const ScoreParams& score = params_.score;
  const T* const outs = reinterpret_cast<const T*>(memory.out);
  const T* const maxima = reinterpret_cast<const T*>(memory.row_max);
  const T* const sums = reinterpret_cast<const T*>(memory.row_sum);
  const int64_t rows = s.heads * s.queries;
  std::vector<T> out(static_cast<size_t>(s.value_dim));
  for (int64_t b = 0; b < s.batch; ++b) {
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t head = row / s.queries;
      const T sink =
          score.sinks == nullptr
              ? kMinusInf
              : static_cast<const T*>(
                    score.sinks)[b * score.sink_strides[0] + head * score.sink_strides[1]];
      const auto at = [&](int64_t part) { return (b * parts() + part) * rows + row; };
      T max = sink;
      for (int64_t part = 0; part < parts(); ++part) max = std::max(max, maxima[at(part)]);
      // -inf - (-inf) is NaN, so a row that attends nothing subtracts 0 instead.
      const T base = max == kMinusInf ? T(0) : max;
      T sum = std::exp(sink - base);
      std::fill(out.begin(), out.end(), T(0));
      for (int64_t part = 0; part < parts(); ++part) {
        const T weight = sums[at(part)] * std::exp(maxima[at(part)] - base);
        sum += weight;
        const T* const of_part = outs + at(part) * s.value_dim;
        for (size_t c = 0; c < out.size(); ++c) out[c] += weight * of_part[c];
      }
      // As without splitting: the softmax of scores that are all -inf is NaN, that of no score 0.
      if (sum == 0 && kernels_.attends_any(params_, b, head, row % s.queries)) {
        sum = std::numeric_limits<T>::quiet_NaN();
      }
      static_cast<T*>(params_.row_max)[b * rows + row] = max;
      static_cast<T*>(params_.row_sum)[b * rows + row] = sum;
      const T factor = sum == 0 ? T(0) : T(1) / sum;
      for (T& x : out) x *= factor;
      store(out, b * params_.out.strides.batch + head * params_.out.strides.head +
                     row % s.queries * params_.out.strides.row);
    }
  }
}

}  // namespace flash
