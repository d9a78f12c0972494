#pragma once
// The inner loops of the models' layers on plain memory, for code that schedules its own threads.
// Each call runs on the calling thread, with the kernels of this CPU or of the instruction set that
// FLASH_ATTENTION_ISA names.
//
// T is float or double. Matrices are row-major and contiguous unless a stride, in elements, is
// given. Arguments are not checked: pointers must be valid for the sizes given, and outputs must
// not overlap anything else unless stated otherwise. A backward adds its sums over rows to `sums`,
// so that calls on parts of the rows accumulate. Nothing here is differentiable: call it below
// autograd. Throws c10::ValueError if FLASH_ATTENTION_ISA names no instruction set of this CPU.

#include <flash_attention/export.h>

#include <cstdint>

namespace flash::kernels {

/// Whether they use vector instructions. Without, ATen's products are faster than those below.
FLASH_API bool have_vectors();

// Products.

/// c = a b, or c += a b: c [rows, columns], a [rows, depth], b [depth, columns].
struct ProductSizes {
  int64_t rows, columns, depth;
  bool accumulate = false;
};

/// a(r, n) = data[r * row + n * step].
template <class T>
struct LeftFactor {
  const T* data;
  int64_t row, step;
};

/// Contiguous rows, `stride` apart.
template <class T>
struct RowMatrix {
  T* data;
  int64_t stride;
};

/// On the calling thread, for matrices that fit the caches.
template <class T>
FLASH_API void block_product(const ProductSizes& sizes, LeftFactor<T> a, RowMatrix<const T> b,
                             RowMatrix<T> c);

/// x [rows, depth] and weight [columns, depth], rows `x_row` and `weight_row` apart, and out [rows,
/// columns], rows `out_row` apart; bias [columns], or null for none.
template <class T>
struct LinearRows {
  const T* x;
  int64_t x_row;
  const T* weight;
  int64_t weight_row;
  const T* bias;
  T* out;
  int64_t out_row;
  int64_t rows, columns, depth;
};

/// out = x weight^T + bias, without a copy of the weight: for few rows, or a depth of several
/// hundreds. An element of the result has the same bits whatever the other rows and columns are.
template <class T>
FLASH_API void linear_rows(const LinearRows<T>& call);

// Complex numbers: `count` real parts and then as many imaginary parts.

/// out = tanh(in), with a relative error of a few machine epsilons except next to the poles
/// i (pi/2 + k pi). `out` may be `in`.
template <class T>
FLASH_API void complex_tanh(const T* in, T* out, int64_t count);

/// out = the gradient of `in` from `result`, the result of complex_tanh, and its `gradient`. `out`
/// may be either of them.
template <class T>
FLASH_API void complex_tanh_backward(const T* result, const T* gradient, T* out, int64_t count);

/// sum [frequencies] += the sum over channels of query * conj(key), query and key
/// [channels, frequencies]. Unlike above, a complex number is a pair of its real and imaginary
/// part.
template <class T>
FLASH_API void add_cross_spectrum(const T* query, const T* key, T* sum, int64_t channels,
                                  int64_t frequencies);

// Series [times, channels], times at least 1.

/// average = the mean of x over `reach` times to either side, with the first and the last row
/// repeated beyond the ends; seasonal = x - average; trend = average + trend_before. `trend` may be
/// null: it is not written then. `trend_before` may be null: it is zero then.
template <class T>
FLASH_API void decompose(const T* x, const T* trend_before, T* seasonal, T* trend, int64_t times,
                         int64_t channels, int64_t reach);

/// `trend_gradient` may be null: it is zero then.
template <class T>
FLASH_API void decompose_backward(const T* seasonal_gradient, const T* trend_gradient,
                                  T* x_gradient, int64_t times, int64_t channels, int64_t reach);

/// out [(times + 1) / 2, channels] = the largest of rows 2 t - 1, 2 t and 2 t + 1 of x that exist;
/// `which` = 0, 1 or 2 for the first of the largest. NaN counts as the largest.
template <class T>
FLASH_API void halve_by_maximum(const T* x, T* out, uint8_t* which, int64_t times,
                                int64_t channels);

/// gradient and which [(times + 1) / 2, channels] -> x_gradient [times, channels].
template <class T>
FLASH_API void halve_by_maximum_backward(const T* gradient, const uint8_t* which, T* x_gradient,
                                         int64_t times, int64_t channels);

/// sum[t] = value[0] + … + value[t]. The rows of value are `stride` apart.
template <class T>
FLASH_API void running_sum(const T* value, int64_t stride, T* sum, int64_t times, int64_t channels);

/// value_gradient[t] = gradient[t] + gradient[t + 1] + …, without the times that are `skipped`
/// [times]. The rows of value_gradient are `stride` apart.
template <class T>
FLASH_API void running_sum_backward(const T* gradient, const bool* skipped, T* value_gradient,
                                    int64_t stride, int64_t times, int64_t channels);

/// A series and its folded form: sums x[t] + x[times - t] and differences x[t] - x[times - t] for
/// t = 0 … times / 2, in rows `row` apart. Where t is its own mirror image, at t = 0 and at the
/// middle of an even number of times, the sum is x[t] and the difference 0.
struct Folding {
  int64_t times, channels, row;
};

/// x [times, channels] -> sums and differences [times / 2 + 1, channels].
template <class T>
FLASH_API void fold(const Folding& folding, const T* x, T* sums, T* differences);

/// The adjoint of `fold`.
template <class T>
FLASH_API void unfold(const Folding& folding, const T* sums, const T* differences, T* x);

/// As `fold`, from x [channels, times].
template <class T>
FLASH_API void fold_transposed(const Folding& folding, const T* x, T* sums, T* differences);

/// From sums and differences [channels, times / 2 + 1] to x [channels, times].
template <class T>
FLASH_API void unfold_rows(const Folding& folding, const T* sums, const T* differences, T* x);

// Gated residual networks (Lim et al., "Temporal Fusion Transformers", arXiv:1912.09363, equations
// 2 to 5), on rows [rows, width].

enum class GatedActivation { kRelu, kSoftplus, kTanh, kSelu, kLeakyRelu, kSigmoid, kElu, kGelu };

/// block = activation(block + shift[(first + row) % period]), with shift [period, width]. With
/// kGelu, `argument` receives the sum unless it is null.
template <class T>
FLASH_API void activate(GatedActivation activation, T* block, const T* shift, T* argument,
                        int64_t period, int64_t first, int64_t rows, int64_t width);

/// gradient = gradient * activation'(.), and sums[(first + row) % period] += gradient, with sums
/// [period, width]. `forward` is the result of `activate`, or with kGelu its `argument`.
template <class T>
FLASH_API void activate_backward(GatedActivation activation, T* gradient, const T* forward, T* sums,
                                 int64_t period, int64_t first, int64_t rows, int64_t width);

/// block = (block + bias) * factors. factors [rows, width] are 0 to drop an element and 1 / (1 - p)
/// to keep it, or null. Dropped elements, and no others, become -0.0.
template <class T>
FLASH_API void drop(T* block, const T* bias, const T* factors, int64_t rows, int64_t width);

/// gradient = gradient * factor, or 0 where `dropped`, the block after `drop`, is -0.0;
/// sums [width] += gradient.
template <class T>
FLASH_API void drop_backward(T* gradient, const T* dropped, T factor, T* sums, int64_t rows,
                             int64_t width);

/// out = x factor + shift, with x [rows], `x_stride` apart, and factor and shift [width].
template <class T>
FLASH_API void outer(T* out, const T* x, int64_t x_stride, const T* factor, const T* shift,
                     int64_t rows, int64_t width);

/// sums [2, width] += the gradients of factor and shift; x_gradient [rows] += the gradient of x.
template <class T>
FLASH_API void outer_backward(const T* gradient, const T* x, int64_t x_stride, const T* factor,
                              T* x_gradient, int64_t x_gradient_stride, T* sums, int64_t rows,
                              int64_t width);

/// LayerNorm(a * sigmoid(b) + skip), where [a | b] = gate + bias.
template <class T>
struct GatedNorm {
  const T* gate;   ///< [rows, 2 width], before the bias is added
  const T* bias;   ///< [2 width]
  const T* skip;   ///< [rows, width]
  const T* scale;  ///< [width], the norm's weight
  const T* shift;  ///< [width], the norm's bias
  T* statistics;   ///< [rows, 2]: mean and reciprocal deviation, written by the forward
  const T* row_factors = nullptr;  ///< [rows], `factor_stride` apart; null: 1
  int64_t factor_stride = 0;
};

template <class T>
struct GatedNormGradients {
  const T* out;              ///< [rows, width]
  T* gate;                   ///< [rows, 2 width]
  T* skip;                   ///< [rows, width]
  T* row_factors = nullptr;  ///< [rows], `factor_stride` apart; null without row factors
  int64_t factor_stride = 0;
  T* sums;  ///< [4, width] += the gradients of scale, shift and the two halves of bias
};

/// out [rows, width] = the norm; with row factors, out += factor * norm. `scratch` [width].
template <class T>
FLASH_API void gated_norm(const GatedNorm<T>& block, T* out, T* scratch, int64_t rows,
                          int64_t width);

template <class T>
FLASH_API void gated_norm_backward(const GatedNorm<T>& block,
                                   const GatedNormGradients<T>& gradients, int64_t rows,
                                   int64_t width);

// Softmax attention of many small problems of one shape, computed side by side in the lanes of
// registers. `*_problem` elements from one problem to the next, `*_row` from one row to the next.

template <class T>
struct LaneAttention {
  const T *query, *key, *value;  ///< [queries, head_dim], [keys, head_dim], [keys, value_dim]
  int64_t query_problem, key_problem, value_problem, out_problem;
  int64_t query_row, key_row, value_row, out_row;
  int64_t problems, queries, keys, head_dim, value_dim;  ///< keys at least 1
  T scale;
  /// lane_attention_scores elements, in an order of their own, which lane_attention adds to the
  /// scores, and replaces by the sums: 0, and then what the call before left. Null: none.
  T* scores = nullptr;
};

/// Contiguous, a problem after the other; `out` is the gradient of the result.
template <class T>
struct LaneAttentionGradients {
  const T* out;
  T *query, *key, *value;
};

/// Elements of `scores`, given all other members.
template <class T>
FLASH_API int64_t lane_attention_scores(const LaneAttention<T>& call);

/// Elements of scratch memory for the functions below; it grows with the number of scores.
template <class T>
FLASH_API int64_t lane_attention_scratch(const LaneAttention<T>& call);

/// out [queries, value_dim] = softmax(scale query key^T + scores) value.
template <class T>
FLASH_API void lane_attention(const LaneAttention<T>& call, T* out, T* scratch);

/// Reads neither out_problem and out_row nor `scores`, which must be null.
template <class T>
FLASH_API void lane_attention_backward(const LaneAttention<T>& call,
                                       const LaneAttentionGradients<T>& gradients, T* scratch);

// Dropout with the mask of flash::dropout, of which elements first … first + count - 1 are
// computed; `first` is a multiple of 64, and p and `seed` are those of a flash::BlockedDropout.

struct DropoutBlock {
  int64_t first, count;
  double p;
  int64_t seed;
};

/// out = dropout(x); from the gradient of out, that of x. `out` may be `x`.
template <class T>
FLASH_API void dropout(const DropoutBlock& block, const T* x, T* out);

/// out = residual + dropout(x). `out` may be either of them.
template <class T>
FLASH_API void dropout_add(const DropoutBlock& block, const T* x, const T* residual, T* out);

// Layer norm over rows of [rows, width], and batch norm over columns.

template <class T>
struct NormRows {
  const T* x;           ///< [rows, width]
  const T* mean;        ///< [rows] of a layer norm, [width] of a batch norm
  const T* reciprocal;  ///< 1 / standard deviation, like `mean`
  const T* weight;      ///< [width]
  int64_t rows, width;
};

/// out [rows, width] = LayerNorm(x), and the mean and the reciprocal deviation of each row [rows];
/// weight and bias [width].
template <class T>
FLASH_API void layer_norm(const T* x, const T* weight, const T* bias, T epsilon, int64_t rows,
                          int64_t width, T* out, T* mean, T* reciprocal);

/// x_gradient [rows, width] = the gradient of x, given that of the norm; sums [2, width] += the
/// gradients of weight and bias.
template <class T>
FLASH_API void layer_norm_backward(const NormRows<T>& norm, const T* gradient, T* x_gradient,
                                   T* sums);

/// out = (x + residual) factor + shift, on rows of x, residual and out [rows, width]; residual, or
/// factor and shift [width], may be null: then they are 0, or 1 and 0. `out` may be x or residual.
template <class T>
FLASH_API void affine_sum(const T* x, const T* residual, const T* factor, const T* shift,
                          int64_t rows, int64_t width, T* out);

/// moments [2, width] = the mean of each column of x [rows, width], rows at least 1, and the sum of
/// squared differences from it.
template <class T>
FLASH_API void column_moments(const T* x, int64_t rows, int64_t width, T* moments);

/// sums [2, width] = the sum over rows of `gradient`, that of the norm, and of its product with the
/// normalized x.
template <class T>
FLASH_API void batch_norm_sums(const NormRows<T>& norm, const T* gradient, T* sums);

/// x_gradient [rows, width] = the gradient of x; means [2, width] are the sums above over all rows
/// of the batch, divided by their number.
template <class T>
FLASH_API void batch_norm_backward(const NormRows<T>& norm, const T* gradient, const T* means,
                                   T* x_gradient);

// A step of an LSTM, gates in torch's order: input, forget, candidate, output.

/// gates [rows, 4 width] hold the products, and the activations of the gates afterwards; bias
/// [4 width]; last_cell, cell and hidden [rows, width].
template <class T>
FLASH_API void lstm(T* gates, const T* bias, const T* last_cell, T* cell, T* hidden, int64_t rows,
                    int64_t width);

/// to_out and to_hidden are the gradients of `hidden` as an output and as an input of the next
/// step. to_cell holds the gradient of `cell`, and that of `last_cell` afterwards. to_gates [rows,
/// 4 width] is that of the products; bias_sums [4 width] += that of the bias.
template <class T>
FLASH_API void lstm_backward(const T* gates, const T* cell, const T* last_cell, const T* to_out,
                             const T* to_hidden, T* to_cell, T* to_gates, T* bias_sums,
                             int64_t rows, int64_t width);

}  // namespace flash::kernels
