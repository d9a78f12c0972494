#pragma once
// Layer norm and its backward, and the sums over rows of batch norm, on rows of `width` elements.

#include "csrc/generic/lanes.h"
#include "csrc/generic/running_sum.h"
#include "csrc/layer_kernels.h"

namespace flash {
namespace {

/// out = LayerNorm(x), and the mean and the reciprocal deviation of each row. weight and bias
/// [width].
template <class V>
void layer_norm(const typename V::Scalar* x, const typename V::Scalar* weight,
                const typename V::Scalar* bias, typename V::Scalar epsilon, int64_t rows,
                int64_t width, typename V::Scalar* out, typename V::Scalar* mean,
                typename V::Scalar* reciprocal) {
  using T = typename V::Scalar;
  using Reg = typename V::Reg;
  const T inverse_width = T(1) / static_cast<T>(width);
  for (int64_t row = 0; row < rows; ++row, x += width, out += width) {
    Reg sum = V::zero(), squares = V::zero();  // lanes past the end add 0
    for_lanes<V>(
        width, [&](int64_t c, auto lanes)
                   __attribute__((always_inline)) { sum = V::add(sum, lanes.load(x + c)); });
    mean[row] = sum_of_lanes<V>(sum) * inverse_width;
    const Reg means = V::broadcast(mean + row);
    for_lanes<V>(
        width, [&](int64_t c, auto lanes) __attribute__((always_inline)) {
          const Reg centered = lanes.only(V::sub(lanes.load(x + c), means));
          squares = V::fma(centered, centered, squares);
        });
    reciprocal[row] = T(1) / square_root(sum_of_lanes<V>(squares) * inverse_width + epsilon);
    const Reg reciprocals = V::broadcast(reciprocal + row);
    for_lanes<V>(
        width, [&](int64_t c, auto lanes) __attribute__((always_inline)) {
          const Reg normalized = V::mul(V::sub(lanes.load(x + c), means), reciprocals);
          lanes.store(out + c, V::fma(normalized, lanes.load(weight + c), lanes.load(bias + c)));
        });
  }
}

/// out = (x + residual) factor + shift on each row: a batch norm with given statistics. `residual`
/// may be null: it is 0 then. So may factor and shift [width], both: they are 1 and 0 then. `out`
/// may be x or residual.
template <class V>
void affine_sum(const typename V::Scalar* x, const typename V::Scalar* residual,
                const typename V::Scalar* factor, const typename V::Scalar* shift, int64_t rows,
                int64_t width, typename V::Scalar* out) {
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t at = row * width;
    for_lanes<V>(
        width, [&](int64_t c, auto lanes) __attribute__((always_inline)) {
          typename V::Reg sum = lanes.load(x + at + c);
          if (residual != nullptr) sum = V::add(lanes.load(residual + at + c), sum);
          if (factor != nullptr) sum = V::fma(sum, lanes.load(factor + c), lanes.load(shift + c));
          lanes.store(out + at + c, sum);
        });
  }
}

/// The backward of a layer norm: writes x_gradient, and adds the gradients of weight and bias to
/// sums [2, width].
template <class V>
void layer_norm_backward(const NormRows<typename V::Scalar>& p, const typename V::Scalar* gradient,
                         typename V::Scalar* x_gradient, typename V::Scalar* sums) {
  using T = typename V::Scalar;
  using Reg = typename V::Reg;
  const T inverse_width = T(1) / static_cast<T>(p.width);
  T *const weight_sum = sums, *const bias_sum = sums + p.width;
  const auto add_to = [](T * memory, auto lanes, Reg x) __attribute__((always_inline)) {
    lanes.store(memory, V::add(lanes.load(memory), x));
  };
  for (int64_t row = 0; row < p.rows; ++row) {
    const T *const x = p.x + row * p.width, *const g = gradient + row * p.width;
    T* const out = x_gradient + row * p.width;
    const Reg mean = V::broadcast(p.mean + row), reciprocal = V::broadcast(p.reciprocal + row);
    Reg sum = V::zero(), product_sum = V::zero();  // lanes past the end add 0
    for_lanes<V>(
        p.width, [&](int64_t c, auto lanes) __attribute__((always_inline)) {
          const Reg normalized = V::mul(V::sub(lanes.load(x + c), mean), reciprocal);
          const Reg incoming = lanes.load(g + c);
          const Reg to_normalized = V::mul(incoming, lanes.load(p.weight + c));
          add_to(weight_sum + c, lanes, V::mul(incoming, normalized));
          add_to(bias_sum + c, lanes, incoming);
          sum = V::add(sum, to_normalized);
          product_sum = V::fma(to_normalized, normalized, product_sum);
        });
    const Reg mean_gradient = V::broadcast(sum_of_lanes<V>(sum) * inverse_width);
    const Reg mean_product = V::broadcast(sum_of_lanes<V>(product_sum) * inverse_width);
    for_lanes<V>(
        p.width, [&](int64_t c, auto lanes) __attribute__((always_inline)) {
          const Reg normalized = V::mul(V::sub(lanes.load(x + c), mean), reciprocal);
          const Reg direct = V::mul(lanes.load(g + c), lanes.load(p.weight + c));
          const Reg through_mean = V::fma(normalized, mean_product, mean_gradient);
          lanes.store(out + c, V::mul(reciprocal, V::sub(direct, through_mean)));
        });
  }
}

/// Vectors of columns that are summed at a time: independent chains of additions.
constexpr int kColumnGroup = 4;

/// The mean of each column of x [rows, width], and the sum of squared differences from it: moments
/// [2, width].
template <class V>
void column_moments(const typename V::Scalar* x, int64_t rows, int64_t width,
                    typename V::Scalar* moments) {
  using T = typename V::Scalar;
  using Reg = typename V::Reg;
  const Reg inverse_rows = V::broadcast(T(1) / static_cast<T>(rows));
  for_lane_groups<V, kColumnGroup>(width, [&]<int kVecs>(int64_t c, auto lanes) {
    Reg mean[kVecs], squares[kVecs];
    each<kVecs>([&](int v) { mean[v] = squares[v] = V::zero(); });
    for (int64_t row = 0; row < rows; ++row) {
      const T* const from = x + row * width + c;
      each<kVecs>([&](int v) { mean[v] = V::add(mean[v], lanes.load(from + v * V::kWidth)); });
    }
    each<kVecs>([&](int v) { mean[v] = V::mul(mean[v], inverse_rows); });
    for (int64_t row = 0; row < rows; ++row) {
      const T* const from = x + row * width + c;
      each<kVecs>([&](int v) {
        const Reg difference = V::sub(lanes.load(from + v * V::kWidth), mean[v]);
        squares[v] = V::fma(difference, difference, squares[v]);
      });
    }
    each<kVecs>([&](int v) {
      lanes.store(moments + c + v * V::kWidth, mean[v]);
      lanes.store(moments + width + c + v * V::kWidth, squares[v]);
    });
  });
}

/// The sums over rows that the backward of a batch norm needs: of `gradient`, and of its product
/// with the normalized rows, in sums [2, width]. `mean` and `reciprocal` [width] are of the
/// columns.
template <class V>
void batch_norm_sums(const NormRows<typename V::Scalar>& p, const typename V::Scalar* gradient,
                     typename V::Scalar* sums) {
  using T = typename V::Scalar;
  using Reg = typename V::Reg;
  for_lane_groups<V, kColumnGroup>(p.width, [&]<int kVecs>(int64_t c, auto lanes) {
    Reg mean[kVecs], sum[kVecs], product_sum[kVecs];
    each<kVecs>([&](int v) {
      mean[v] = lanes.load(p.mean + c + v * V::kWidth);
      sum[v] = product_sum[v] = V::zero();
    });
    for (int64_t row = 0; row < p.rows; ++row) {
      const T *const x = p.x + row * p.width + c, *const g = gradient + row * p.width + c;
      each<kVecs>([&](int v) {
        const Reg incoming = lanes.load(g + v * V::kWidth);
        const Reg centered = V::sub(lanes.load(x + v * V::kWidth), mean[v]);
        sum[v] = V::add(sum[v], incoming);
        product_sum[v] = V::fma(incoming, centered, product_sum[v]);
      });
    }
    each<kVecs>([&](int v) {
      const int64_t at = c + v * V::kWidth;
      const Reg reciprocal = lanes.load(p.reciprocal + at);
      lanes.store(sums + at, sum[v]);
      lanes.store(sums + p.width + at, V::mul(product_sum[v], reciprocal));
    });
  });
}

/// The gradient of the rows of a batch norm, from that of its result and `means` [2, width], the
/// sums above over all rows, divided by their number.
template <class V>
void batch_norm_backward(const NormRows<typename V::Scalar>& p, const typename V::Scalar* gradient,
                         const typename V::Scalar* means, typename V::Scalar* x_gradient) {
  using Reg = typename V::Reg;
  for (int64_t row = 0; row < p.rows; ++row) {
    const int64_t at = row * p.width;
    for_lanes<V>(
        p.width, [&](int64_t c, auto lanes) __attribute__((always_inline)) {
          const Reg reciprocal = lanes.load(p.reciprocal + c);
          const Reg centered = V::sub(lanes.load(p.x + at + c), lanes.load(p.mean + c));
          const Reg normalized = V::mul(centered, reciprocal);
          const Reg through_mean =
              V::fma(normalized, lanes.load(means + p.width + c), lanes.load(means + c));
          const Reg direct = V::sub(lanes.load(gradient + at + c), through_mean);
          lanes.store(x_gradient + at + c,
                      V::mul(V::mul(reciprocal, lanes.load(p.weight + c)), direct));
        });
  }
}

}  // namespace
}  // namespace flash
