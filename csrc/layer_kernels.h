#pragma once
// The loops of the models' layers, as a table of functions of one instruction set. They run on the
// caller's thread and memory, in float or double; a call is one thread's share of the work. Each
// function is documented at its definition in generic/.

#include <cstdint>

#include "csrc/params.h"

namespace flash {

enum class GatedActivation { kRelu, kSoftplus, kTanh, kSelu, kLeakyRelu, kSigmoid, kElu, kGelu };

/// Rows of LayerNorm(a * sigmoid(b) + skip), where [a | b] = gate + bias. See generic/gated_norm.h.
template <class T>
struct GatedNormParams {
  const T* gate;         ///< [rows, 2 width]
  const T* bias;         ///< [2 width]
  const T* skip;         ///< [rows, width]
  const T* scale;        ///< [width], of the layer norm
  const T* shift;        ///< [width], of the layer norm
  T* statistics;         ///< [rows, 2]: mean and 1 / standard deviation; the forward writes it
  const T* row_factors;  ///< [rows], `factor_stride` apart; null: none
  int64_t factor_stride;
  int64_t width;
};

template <class T>
struct GatedNormGradients {
  const T* out;    ///< [rows, width]
  T* gate;         ///< [rows, 2 width]
  T* skip;         ///< [rows, width]
  T* row_factors;  ///< [rows], `factor_stride` apart; null without row factors
  int64_t factor_stride;
  T* sums;  ///< [4, width], added to: gradients of scale, shift and both halves of bias
};

/// out = x weight^T + bias. See generic/linear_rows.h.
template <class T>
struct LinearRows {
  const T* x;  ///< [rows, depth], `x_row` apart
  int64_t x_row;
  const T* weight;  ///< [columns, depth], `weight_row` apart
  int64_t weight_row;
  const T* bias;  ///< [columns]; null: none
  T* out;         ///< [rows, columns], `out_row` apart
  int64_t out_row;
  int64_t rows, columns, depth;
};

/// Rows of a layer norm, or of a batch norm. See generic/norms.h.
template <class T>
struct NormRows {
  const T* x;           ///< [rows, width]
  const T* mean;        ///< [rows] of a layer norm, [width] of a batch norm
  const T* reciprocal;  ///< the same: 1 / standard deviation
  const T* weight;      ///< [width]
  int64_t rows, width;
};

/// Softmax attention of problems of one shape, `*_problem` elements from one to the next and
/// `*_row` from one row to the next. See generic/lane_attention.h.
template <class T>
struct LaneAttentionParams {
  const T *query, *key, *value;  ///< [queries, head_dim], [keys, head_dim], [keys, value_dim]
  int64_t query_problem, key_problem, value_problem, out_problem;
  int64_t query_row, key_row, value_row, out_row;
  int64_t problems, queries, keys, head_dim, value_dim;
  T scale;
  /// The forward adds these scores to those of the queries and keys, and replaces them by the sums;
  /// lane_attention_scores elements, in an order of its own. Null: none.
  T* scores = nullptr;
};

/// Contiguous, a problem after the other.
template <class T>
struct LaneAttentionGradients {
  const T* out;
  T *query, *key, *value;
};

/// A contiguous series [times, channels], averaged over `reach` times to either side.
struct SeriesShape {
  int64_t times, channels, reach;
};

/// A series of T times and its folded form: rows t = 0 … T / 2 of sums x[t] + x[T - t] and of
/// differences, `row` elements apart. See generic/folding.h.
struct FoldedShape {
  int64_t times, channels, row;
  int64_t steps() const { return times / 2 + 1; }
};

template <class T>
struct LayerKernels {
  /// `product` in one unit of work. Rows of `right` must be contiguous.
  void (*block_product)(const ProductParams&);
  void (*linear_rows)(const LinearRows<T>&);

  void (*complex_tanh)(const T* in, T* out, int64_t count);
  void (*complex_tanh_backward)(const T* result, const T* gradient, T* out, int64_t count);

  void (*decompose)(const SeriesShape&, const T* x, const T* trend_before, T* seasonal, T* trend);
  void (*decompose_backward)(const SeriesShape&, const T* seasonal_gradient,
                             const T* trend_gradient, T* x_gradient);

  void (*halve_by_maximum)(const T* x, T* out, uint8_t* which, int64_t steps, int64_t width);
  void (*halve_by_maximum_backward)(const T* gradient, const uint8_t* which, T* x_gradient,
                                    int64_t steps, int64_t width);

  void (*activate)(GatedActivation, T* block, const T* shift, T* argument, int64_t period,
                   int64_t first, int64_t rows, int64_t width);
  void (*activate_backward)(GatedActivation, T* gradient, const T* forward, T* sums, int64_t period,
                            int64_t first, int64_t rows, int64_t width);
  void (*drop)(T* block, const T* bias, const T* factors, int64_t rows, int64_t width);
  void (*drop_backward)(T* gradient, const T* dropped, T factor, T* sums, int64_t rows,
                        int64_t width);
  void (*outer)(T* out, const T* x, int64_t x_stride, const T* factor, const T* shift, int64_t rows,
                int64_t width);
  void (*outer_backward)(const T* gradient, const T* x, int64_t x_stride, const T* factor,
                         T* x_gradient, int64_t x_gradient_stride, T* sums, int64_t rows,
                         int64_t width);
  void (*gated_norm)(const GatedNormParams<T>&, T* out, T* scratch, int64_t rows);
  void (*gated_norm_backward)(const GatedNormParams<T>&, const GatedNormGradients<T>&,
                              int64_t rows);
  int64_t (*lane_attention_scores)(const LaneAttentionParams<T>&);
  /// Elements of scratch memory for the two functions after it.
  int64_t (*lane_attention_scratch)(const LaneAttentionParams<T>&);
  void (*lane_attention)(const LaneAttentionParams<T>&, T* out, T* scratch);
  void (*lane_attention_backward)(const LaneAttentionParams<T>&, const LaneAttentionGradients<T>&,
                                  T* scratch);
  void (*layer_norm)(const T* x, const T* weight, const T* bias, T epsilon, int64_t rows,
                     int64_t width, T* out, T* mean, T* reciprocal);
  void (*layer_norm_backward)(const NormRows<T>&, const T* gradient, T* x_gradient, T* sums);
  void (*affine_sum)(const T* x, const T* residual, const T* factor, const T* shift, int64_t rows,
                     int64_t width, T* out);
  void (*column_moments)(const T* x, int64_t rows, int64_t width, T* moments);
  void (*batch_norm_sums)(const NormRows<T>&, const T* gradient, T* sums);
  void (*batch_norm_backward)(const NormRows<T>&, const T* gradient, const T* means, T* x_gradient);
  void (*lstm)(T* gates, const T* bias, const T* last_cell, T* cell, T* hidden, int64_t rows,
               int64_t width);
  void (*lstm_backward)(const T* gates, const T* cell, const T* last_cell, const T* to_out,
                        const T* to_hidden, T* to_cell, T* to_gates, T* bias_sums, int64_t rows,
                        int64_t width);

  void (*fold)(const FoldedShape&, const T* x, T* sums, T* differences);
  void (*unfold)(const FoldedShape&, const T* sums, const T* differences, T* x);
  void (*fold_transposed)(const FoldedShape&, const T* x, T* sums, T* differences);
  void (*unfold_rows)(const FoldedShape&, const T* sums, const T* differences, T* x);

  void (*add_cross_spectrum)(const T* query, const T* key, T* sum, int64_t channels,
                             int64_t frequencies);

  void (*running_sum)(const T* value, int64_t step, T* sum, int64_t length, int64_t width);
  void (*running_sum_backward)(const T* gradient, const bool* skipped, T* value_gradient,
                               int64_t step, int64_t length, int64_t width);
};

}  // namespace flash
