#pragma once
// Runs the kernels of one instruction set on a problem.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "csrc/kernels.h"
#include "tests/csrc/isa.h"
#include "tests/csrc/memory.h"
#include "tests/csrc/problem.h"
#include "tests/csrc/reference.h"

namespace flash::testing {

/// The memory layout of a [batch, heads, length, width] tensor.
class RowLayout {
 public:
  RowLayout(Layout layout, int64_t batch, int64_t heads, int64_t length, int64_t width)
      : batch_(batch), heads_(heads), length_(length), width_(width) {
    constexpr int64_t kGap = 3;
    const int64_t row = layout == Layout::kGaps ? width + kGap : width;
    strides_ = layout == Layout::kHeadsAfterLength
                   ? Strides{length * heads * row, row, heads * row}
                   : Strides{heads * length * row, length * row, row};
  }

  const Strides& strides() const { return strides_; }
  int64_t count() const { return batch_ * heads_ * length_ * width_; }

  /// Elements of memory up to the last one that belongs to a row.
  int64_t extent() const {
    if (count() == 0) return 0;
    return (batch_ - 1) * strides_.batch + (heads_ - 1) * strides_.head +
           (length_ - 1) * strides_.row + width_;
  }

  /// Calls f(offset in memory, index in the tensor) for each element.
  template <class F>
  void for_each(F&& f) const {
    int64_t index = 0;
    for (int64_t b = 0; b < batch_; ++b) {
      for (int64_t h = 0; h < heads_; ++h) {
        for (int64_t i = 0; i < length_; ++i) {
          const int64_t row = b * strides_.batch + h * strides_.head + i * strides_.row;
          for (int64_t d = 0; d < width_; ++d) f(row + d, index++);
        }
      }
    }
  }

 private:
  int64_t batch_, heads_, length_, width_;
  Strides strides_;
};

inline int64_t stored_bytes(Storage storage, int64_t native) {
  return storage == Storage::kNative ? native : 2;
}

/// The arrays of one call, allocated from `memory`.
template <class T>
class Arrays {
 public:
  explicit Arrays(Memory& memory) : memory_(memory) {}

  ConstRows input(const char* name, const std::vector<T>& values, const RowLayout& rows,
                  Storage storage) {
    void* data = allocate(name, rows, storage);
    with_stored<T>(data, storage, [&](auto* to) {
      rows.for_each([&](int64_t at, int64_t i) { put(values[i], to + at); });
    });
    return {data, rows.strides()};
  }

  MutableRows output(const char* name, const RowLayout& rows, Storage storage) {
    return {allocate(name, rows, storage), rows.strides()};
  }

  /// Returns what a kernel has written, and expects that it wrote nothing between the rows.
  std::vector<double> read(const char* name, const MutableRows& from, const RowLayout& rows,
                           Storage storage) const {
    std::vector<double> values(rows.count());
    const auto size = static_cast<size_t>(stored_bytes(storage, sizeof(T)));
    auto* bytes = static_cast<uint8_t*>(from.data);
    rows.for_each([&](int64_t at, int64_t i) {
      values[i] = static_cast<double>(stored_element<T>(from.data, at, storage));
      std::memset(bytes + at * size, memory_.fill(), size);
    });
    const auto written = std::count_if(bytes, bytes + rows.extent() * size,
                                       [&](uint8_t byte) { return byte != memory_.fill(); });
    EXPECT_EQ(written, 0) << "bytes written between the rows of " << name;
    return values;
  }

 private:
  void* allocate(const char* name, const RowLayout& rows, Storage storage) {
    return memory_.bytes(name, rows.extent() * stored_bytes(storage, sizeof(T)));
  }
  static void put(T x, T* to) { *to = x; }
  template <class Stored>
  static void put(T x, Stored* to) {
    round_to(x, to);
  }

  Memory& memory_;
};

template <class T>
std::vector<double> as_double(const T* values, int64_t count) {
  return std::vector<double>(values, values + count);
}

/// Forward and backward of a kernel table. The units of a step run in one range, or one by one in
/// reverse order.
template <class T>
class KernelRun {
 public:
  KernelRun(const KernelTable& table, const Problem<T>& problem, Memory& memory, bool one_by_one)
      : kernels_(typed<T>(table)),
        p_(problem),
        memory_(memory),
        arrays_(memory),
        one_by_one_(one_by_one),
        rows_(p_.shape.batch * p_.shape.heads * p_.shape.queries),
        query_(p_.options.layout, p_.shape.batch, p_.shape.heads, p_.shape.queries,
               p_.shape.head_dim),
        key_(p_.options.layout, p_.shape.batch, p_.shape.key_heads, p_.shape.keys,
             p_.shape.head_dim),
        value_(p_.options.layout, p_.shape.batch, p_.shape.value_heads, p_.shape.keys,
               p_.shape.value_dim),
        out_(p_.options.layout, p_.shape.batch, p_.shape.heads, p_.shape.queries,
             p_.shape.value_dim) {
    const Storage storage = p_.options.storage;
    forward_.shape = p_.shape;
    forward_.score = score();
    forward_.storage = storage;
    forward_.float_parts = p_.options.float_parts;
    forward_.query = arrays_.input("query", p_.q, query_, storage);
    forward_.key = arrays_.input("key", p_.k, key_, storage);
    forward_.value = arrays_.input("value", p_.v, value_, storage);
    forward_.block_size = p_.options.block_size;
    row_max_ = memory_.array<T>("row_max", rows_);
    row_sum_ = memory_.array<T>("row_sum", rows_);
    forward_.row_max = row_max_;
    forward_.row_sum = row_sum_;
  }

  Answer run(Directions directions) {
    Answer a;
    a.out = forward(p_.options.out_16_bit ? p_.options.storage : Storage::kNative);
    a.lse.resize(rows_);
    for (int64_t i = 0; i < rows_; ++i) {
      a.lse[i] = static_cast<double>(row_max_[i]) + std::log(static_cast<double>(row_sum_[i]));
    }
    if (directions == Directions::kForward) return a;
    // The reference's gradients belong to an unrounded output, so the backward reads that.
    if (p_.options.out_16_bit) forward(Storage::kNative);
    backward(a);
    return a;
  }

 private:
  template <class Range>
  void over_units(int64_t units, Range&& range) const {
    if (!one_by_one_) return range(0, units);
    for (int64_t unit = units - 1; unit >= 0; --unit) range(unit, unit + 1);
  }

  ScoreParams score() {
    const Shape& s = p_.shape;
    ScoreParams score = {};
    score.scale = p_.scale;
    score.window_left = p_.options.left;
    score.window_right = p_.options.causal ? 0 : p_.options.right;
    score.softcap = p_.options.softcap;
    score.dropout = p_.options.dropout;
    score.dropout_seed = kSeed;
    if (!p_.slopes.empty()) {
      score.alibi_slopes = memory_.copy("alibi_slopes", p_.slopes);
      score.slope_strides[0] = s.heads;
      score.slope_strides[1] = 1;
    }
    if (!p_.sinks.empty()) {
      score.sinks = memory_.copy("sinks", p_.sinks);
      score.sink_strides[1] = 1;
    }
    if (!p_.positions.empty()) {
      score.positions = memory_.copy("positions", p_.positions);
      score.position_strides[0] = s.heads * s.queries;
      score.position_strides[1] = s.queries;
      score.position_strides[2] = 1;
    }
    score.bias_kind = p_.options.bias;
    if (p_.options.bias == BiasKind::kNone) return score;
    if (!p_.options.bias_per_key) {
      score.bias_strides[0] = s.heads * s.queries * s.keys;
      score.bias_strides[1] = s.queries * s.keys;
      score.bias_strides[2] = s.keys;
    }
    score.bias_strides[3] = 1;
    if (p_.options.bias == BiasKind::kBoolean) {
      score.bias = memory_.copy("mask", p_.mask);
    } else {
      score.bias_storage = p_.options.storage;
      const RowLayout values(Layout::kContiguous, 1, 1, 1, static_cast<int64_t>(p_.bias.size()));
      score.bias = arrays_.input("bias", p_.bias, values, p_.options.storage).data;
    }
    return score;
  }

  std::vector<double> forward(Storage out_storage) {
    forward_.out_storage = out_storage;
    forward_.out = arrays_.output("out", out_, out_storage);
    void* scratch =
        memory_.aligned_bytes("forward scratch", kernels_.forward_scratch_bytes(forward_));
    over_units(kernels_.forward_plan(forward_).units, [&](int64_t begin, int64_t end) {
      kernels_.forward(forward_, begin, end, scratch);
    });
    // Saved, because `read` overwrites it.
    std::vector<T> saved;
    if (out_storage == Storage::kNative) {
      const T* from = static_cast<const T*>(forward_.out.data);
      saved.assign(from, from + out_.extent());
    }
    std::vector<double> out = arrays_.read("out", forward_.out, out_, out_storage);
    std::copy(saved.begin(), saved.end(), static_cast<T*>(forward_.out.data));
    return out;
  }

  void backward(Answer& a) {
    const Storage storage = p_.options.storage;
    BackwardParams p = {};
    p.shape = forward_.shape;
    p.score = forward_.score;
    p.storage = storage;
    p.float_parts = forward_.float_parts;
    p.query = forward_.query;
    p.key = forward_.key;
    p.value = forward_.value;
    p.out = {forward_.out.data, forward_.out.strides};
    p.grad_out_storage = storage;
    p.grad_out = arrays_.input("grad_out", p_.grad_out, out_, storage);
    p.row_max = row_max_;
    p.row_sum = row_sum_;
    if (!p_.grad_lse.empty()) p.grad_lse = memory_.copy("grad_lse", p_.grad_lse);
    T* slope_rows = memory_.array<T>("slope rows", p_.slopes.empty() ? 0 : rows_);
    T* sink_rows = memory_.array<T>("sink rows", p_.sinks.empty() ? 0 : rows_);
    if (!p_.slopes.empty()) p.grad_slope_rows = slope_rows;
    if (!p_.sinks.empty()) p.grad_sink_rows = sink_rows;
    p.grad_query = arrays_.output("grad_query", query_, Storage::kNative);
    p.grad_key = arrays_.output("grad_key", key_, Storage::kNative);
    p.grad_value = arrays_.output("grad_value", value_, Storage::kNative);
    p.block_size = p_.options.block_size;
    const bool adds = adds_to_grad_bias(p_.options);
    const auto biases = static_cast<int64_t>(p_.bias.size());
    if (biases > 0) {
      // Sums over rows are in float64, as in the operator.
      p.grad_bias_adds = adds;
      p.grad_bias_is_double = sizeof(T) == 8 || p_.options.bias_per_key;
      p.grad_bias_storage = adds ? Storage::kNative : storage;
      const int64_t bytes = biases * (adds ? (p.grad_bias_is_double ? 8 : sizeof(T))
                                           : stored_bytes(storage, sizeof(T)));
      p.grad_bias = memory_.bytes("grad_bias", bytes);
      const bool has_window = p.score.window_left >= 0 || p.score.window_right >= 0;
      if (adds || has_window) std::memset(p.grad_bias, 0, bytes);
      std::copy(p.score.bias_strides, p.score.bias_strides + 4, p.grad_bias_strides);
    }
    void* scratch = memory_.aligned_bytes("backward scratch", kernels_.backward_scratch_bytes(p));
    const WorkPlan plan = kernels_.backward_plan(p);
    for (int64_t step = 0; step < plan.steps; ++step) {
      over_units(plan.units, [&](int64_t begin, int64_t end) {
        kernels_.backward(p, step, begin, end, scratch);
      });
    }
    a.dq = arrays_.read("grad_query", p.grad_query, query_, Storage::kNative);
    a.dk = arrays_.read("grad_key", p.grad_key, key_, Storage::kNative);
    a.dv = arrays_.read("grad_value", p.grad_value, value_, Storage::kNative);
    a.dslopes = as_double(slope_rows, p_.slopes.empty() ? 0 : rows_);
    a.dsinks = as_double(sink_rows, p_.sinks.empty() ? 0 : rows_);
    if (adds && p.grad_bias_is_double) {
      a.dbias = as_double(static_cast<const double*>(p.grad_bias), biases);
      return;
    }
    a.dbias.resize(biases);
    for (int64_t i = 0; i < biases; ++i) {
      a.dbias[i] = static_cast<double>(stored_element<T>(p.grad_bias, i, p.grad_bias_storage));
    }
  }

  const TypedKernels& kernels_;
  const Problem<T>& p_;
  Memory& memory_;
  Arrays<T> arrays_;
  const bool one_by_one_;
  const int64_t rows_;
  const RowLayout query_, key_, value_, out_;
  ForwardParams forward_ = {};
  T* row_max_;
  T* row_sum_;
};

template <class T>
Answer run(const KernelTable& table, const Problem<T>& problem, bool one_by_one = false) {
  Memory memory;
  return KernelRun<T>(table, problem, memory, one_by_one).run(Directions::kBoth);
}

template <class T>
Answer run_in(Memory& memory, const KernelTable& table, const Problem<T>& problem,
              Directions directions = Directions::kBoth) {
  return KernelRun<T>(table, problem, memory, /*one_by_one=*/false).run(directions);
}

}  // namespace flash::testing
