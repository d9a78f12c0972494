#pragma once
// Softmax attention of many small problems of one shape, a problem per lane.
//
// Lanes of forward.h are queries, of which short sequences have few, and each problem needs its
// own preparation. Here every operation is one on V::kWidth problems. Operands are transposed as
// they are loaded: a matrix [rows, columns] of each problem is [rows, columns, lanes] in scratch
// memory. All scores are formed at once, so the scratch grows with their number.

#include <cstdint>

#include "csrc/denormals.h"
#include "csrc/generic/exp.h"
#include "csrc/generic/lanes.h"
#include "csrc/generic/product.h"
#include "csrc/layer_kernels.h"

namespace flash {
namespace {

/// An element is a register of lanes; strides are in numbers.
template <class T>
struct LaneMatrix {
  T* data;
  int64_t row, column;
};

template <class V, int kRows, int kColumns>
[[gnu::always_inline]] inline void lane_block(LaneMatrix<const typename V::Scalar> a,
                                              LaneMatrix<const typename V::Scalar> b,
                                              LaneMatrix<typename V::Scalar> c, int64_t depth) {
  typename V::Reg sum[kRows][kColumns];
  clear<V>(sum);
  for (int64_t n = 0; n < depth; ++n) {
    typename V::Reg right[kColumns];
#pragma GCC unroll 4
    for (int i = 0; i < kColumns; ++i) right[i] = V::load(b.data + i * b.column);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const typename V::Reg left = V::load(a.data + r * a.row);
#pragma GCC unroll 4
      for (int i = 0; i < kColumns; ++i) sum[r][i] = V::fma(left, right[i], sum[r][i]);
    }
    a.data += a.column;
    b.data += b.row;
  }
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int i = 0; i < kColumns; ++i) V::store(c.data + r * c.row + i * c.column, sum[r][i]);
  }
}

/// c = a b in each lane: a [rows, depth], b [depth, columns].
template <class V>
[[gnu::noinline]] void lane_product(LaneMatrix<const typename V::Scalar> a,
                                    LaneMatrix<const typename V::Scalar> b,
                                    LaneMatrix<typename V::Scalar> c, int64_t rows, int64_t columns,
                                    int64_t depth) {
  constexpr int kBlock = V::kColumnVecs == 4 ? 4 : 3;  // rows and columns of a register block
  for_row_blocks<kBlock>(rows, [&]<int kRows>(int64_t r) {
    for_row_blocks<kBlock>(columns, [&]<int kColumns>(int64_t i) {
      lane_block<V, kRows, kColumns>({a.data + r * a.row, a.row, a.column},
                                     {b.data + i * b.column, b.row, b.column},
                                     {c.data + r * c.row + i * c.column, c.row, c.column}, depth);
    });
  });
}

/// V::kWidth problems, or fewer.
template <class V>
class LaneGroup {
 public:
  using T = typename V::Scalar;
  using Reg = typename V::Reg;

  LaneGroup(const LaneAttentionParams<T>& p, int64_t first, T* scratch)
      : p_(p), first_(first), count_(min_of(W, p.problems - first)) {
    const auto take = [&](int64_t elements) {
      T* const part = scratch;
      scratch += elements * W;
      return part;
    };
    queries_ = take(p.queries * p.head_dim);
    keys_ = take(p.keys * p.head_dim);
    values_ = take(p.keys * p.value_dim);
    out_ = take(p.queries * p.value_dim);
    weights_ = take(p.queries * p.keys);
    gradients_ = scratch;
  }

  /// Elements of scratch memory for the backward; the forward needs fewer.
  static int64_t scratch(const LaneAttentionParams<T>& p) {
    return W * (2 * (p.queries + p.keys) * p.head_dim + 2 * p.keys * p.value_dim +
                p.queries * p.value_dim + 2 * p.queries * p.keys);
  }

  /// Elements of the scores that calls pass on.
  static int64_t scores(const LaneAttentionParams<T>& p) {
    return round_up(p.problems, W) * p.queries * p.keys;
  }

  void forward(T* out) {
    load_inputs();
    if (p_.scores != nullptr) add_scores(p_.scores + first_ * p_.queries * p_.keys);
    for (int64_t i = 0; i < p_.queries; ++i) to_weights(i);
    lane_product<V>(weights(), values(), rows_of(out_, p_.value_dim), p_.queries, p_.value_dim,
                    p_.keys);
    store(out_, p_.out_problem, p_.out_row, p_.queries, p_.value_dim, T(1), out);
  }

  void backward(const LaneAttentionGradients<T>& g) {
    load_inputs();
    for (int64_t i = 0; i < p_.queries; ++i) to_weights(i);
    const int64_t width = p_.value_dim, size = p_.queries * width;
    load(g.out + first_ * size, size, width, p_.queries, width, T(1), out_);
    T* const of_weights = gradients_;
    T* const of_queries = of_weights + p_.queries * p_.keys * W;
    T* const of_keys = of_queries + p_.queries * p_.head_dim * W;
    T* const of_values = of_keys + p_.keys * p_.head_dim * W;
    const LaneMatrix<const T> of_out = {out_, width * W, W};
    lane_product<V>(of_out, {values_, W, width * W}, rows_of(of_weights, p_.keys), p_.queries,
                    p_.keys, width);
    lane_product<V>({weights_, W, p_.keys * W}, of_out, rows_of(of_values, width), p_.keys, width,
                    p_.queries);
    for (int64_t i = 0; i < p_.queries; ++i) to_scores(i, of_weights);
    const LaneMatrix<const T> of_scores = {of_weights, p_.keys * W, W};
    lane_product<V>(of_scores, {keys_, p_.head_dim * W, W}, rows_of(of_queries, p_.head_dim),
                    p_.queries, p_.head_dim, p_.keys);
    lane_product<V>({of_weights, W, p_.keys * W}, {queries_, p_.head_dim * W, W},
                    rows_of(of_keys, p_.head_dim), p_.keys, p_.head_dim, p_.queries);
    store(of_queries, p_.queries * p_.head_dim, p_.head_dim, p_.queries, p_.head_dim, p_.scale,
          g.query);
    store(of_keys, p_.keys * p_.head_dim, p_.head_dim, p_.keys, p_.head_dim, T(1), g.key);
    store(of_values, p_.keys * width, width, p_.keys, width, T(1), g.value);
  }

 private:
  static constexpr int64_t W = V::kWidth;

  static LaneMatrix<T> rows_of(T* data, int64_t columns) { return {data, columns * W, W}; }
  LaneMatrix<const T> weights() const { return {weights_, p_.keys * W, W}; }
  LaneMatrix<const T> values() const { return {values_, p_.value_dim * W, W}; }

  // Scaled queries, keys, values, and the scores.
  void load_inputs() {
    load(p_.query + first_ * p_.query_problem, p_.query_problem, p_.query_row, p_.queries,
         p_.head_dim, p_.scale, queries_);
    load(p_.key + first_ * p_.key_problem, p_.key_problem, p_.key_row, p_.keys, p_.head_dim, T(1),
         keys_);
    load(p_.value + first_ * p_.value_problem, p_.value_problem, p_.value_row, p_.keys,
         p_.value_dim, T(1), values_);
    lane_product<V>({queries_, p_.head_dim * W, W}, {keys_, W, p_.head_dim * W},
                    rows_of(weights_, p_.keys), p_.queries, p_.keys, p_.head_dim);
  }

  // to[row][column] = factor * from, `problem` from one lane to the next.
  void load(const T* from, int64_t problem, int64_t row, int64_t rows, int64_t columns, T factor,
            T* to) const {
    if (row == columns) columns *= rows, rows = 1;
    for (int64_t r = 0; r < rows; ++r) {
      pack_transposed<V, W>(from + r * row, problem, count_, columns, factor, to + r * columns * W);
    }
  }

  // Adds the scores of earlier calls, and replaces those by the sums.
  void add_scores(T* scores) {
    for (int64_t i = 0; i < p_.queries * p_.keys * W; i += W) {
      const Reg sum = V::add(V::load(scores + i), V::load(weights_ + i));
      V::store(scores + i, sum);
      V::store(weights_ + i, sum);
    }
  }

  // The reverse of load.
  void store(const T* from, int64_t problem, int64_t row, int64_t rows, int64_t columns, T factor,
             T* to) const {
    to += first_ * problem;
    if (row == columns) columns *= rows, rows = 1;
    for (int64_t r = 0; r < rows; ++r) {
      store_row(from + r * columns * W, problem, columns, factor, to + r * row);
    }
  }

  void store_row(const T* from, int64_t problem, int64_t size, T factor, T* to) const {
    const Reg scale = V::broadcast(factor);
    for (int64_t c = 0; c < size; c += W) {
      const int64_t width = min_of(W, size - c);
      Reg block[W];
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i) {
        block[i] = i < width ? V::mul(scale, V::load(from + (c + i) * W)) : V::zero();
      }
      V::transpose(block);
      alignas(64) T lanes[W][W];
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i) V::store(lanes[i], block[i]);
      for (int64_t i = 0; i < count_; ++i) {
        T* const row = to + i * problem + c;
        if (width == W) {
          V::store(row, V::load(lanes[i]));
        } else {
          copy_first<(W > 1 ? W / 2 : 1)>(lanes[i], row, width);
        }
      }
    }
  }

  // Turns the scores of a query into weights.
  void to_weights(int64_t i) {
    T* const row = weights_ + i * p_.keys * W;
    Reg top = V::load(row), sum = V::zero();
    for (int64_t j = 1; j < p_.keys; ++j) top = V::max(V::load(row + j * W), top);
    for_exp_groups<V>(
        p_.keys, [&]<int kRows>(int64_t j) __attribute__((always_inline)) {
          Reg weight[kRows];
          each<kRows>([&](int r) { weight[r] = V::sub(V::load(row + (j + r) * W), top); });
          exp<V>(weight);
          each<kRows>([&](int r) { V::store(row + (j + r) * W, weight[r]); });
          each<kRows>([&](int r) { sum = V::add(sum, weight[r]); });
        });
    const Reg inverse = V::div(V::broadcast(T(1)), sum);
    for (int64_t j = 0; j < p_.keys; ++j) {
      V::store(row + j * W, V::mul(V::load(row + j * W), inverse));
    }
  }

  // Turns the gradients of the weights of a query into those of its scores.
  void to_scores(int64_t i, T* of_weights) const {
    const T* const weight = weights_ + i * p_.keys * W;
    T* const gradient = of_weights + i * p_.keys * W;
    Reg delta = V::zero();
    for (int64_t j = 0; j < p_.keys; ++j) {
      delta = V::fma(V::load(weight + j * W), V::load(gradient + j * W), delta);
    }
    for (int64_t j = 0; j < p_.keys; ++j) {
      const Reg difference = V::sub(V::load(gradient + j * W), delta);
      V::store(gradient + j * W, V::mul(V::load(weight + j * W), difference));
    }
  }

  const LaneAttentionParams<T>& p_;
  const int64_t first_, count_;
  T *queries_, *keys_, *values_, *out_, *weights_, *gradients_;
};

/// out [problems, queries, value_dim] = softmax(scale query key^T) value.
template <class V>
void lane_attention(const LaneAttentionParams<typename V::Scalar>& p, typename V::Scalar* out,
                    typename V::Scalar* scratch) {
  const FlushDenormals flush;
  for (int64_t first = 0; first < p.problems; first += V::kWidth) {
    LaneGroup<V>(p, first, scratch).forward(out);
  }
}

template <class V>
void lane_attention_backward(const LaneAttentionParams<typename V::Scalar>& p,
                             const LaneAttentionGradients<typename V::Scalar>& g,
                             typename V::Scalar* scratch) {
  const FlushDenormals flush;
  for (int64_t first = 0; first < p.problems; first += V::kWidth) {
    LaneGroup<V>(p, first, scratch).backward(g);
  }
}

}  // namespace
}  // namespace flash
