#pragma once
// The arguments of the kernels: raw pointers, strides and sizes. Strides are in elements. The last
// dimension of query, key, value, output and their gradients is contiguous. "Native" is the type
// that the kernel computes in, float or double.

#include <cstdint>

namespace flash {

/// The type of elements in memory: native, or a 16-bit type, which the float kernels convert as
/// they load and round to as they store.
enum class Storage { kNative, kBFloat16, kHalf };

/// In how many bfloat16 parts matrix tiles may take the elements of float tensors, which are then
/// multiplied as sums of their parts: 0 (not at all), 2 (three products, a relative error of some
/// 2^-17) or 3 (six products, an error as in float). Instruction sets without tiles ignore it.
using FloatParts = int;

struct Strides {
  int64_t batch;
  int64_t head;
  int64_t row;
};

/// A [batch, heads, rows, columns] tensor. `data` may be null where that is documented.
template <class Pointer>
struct RowsOf {
  Pointer data;
  Strides strides;
};
using ConstRows = RowsOf<const void*>;
using MutableRows = RowsOf<void*>;

struct Shape {
  int64_t batch;
  int64_t heads;  ///< query heads, a multiple of key_heads and value_heads
  int64_t key_heads;
  int64_t value_heads;
  int64_t queries;
  int64_t keys;
  int64_t head_dim;   ///< width of query and key
  int64_t value_dim;  ///< width of value and output
};

/// Where a call lies in a larger one of which it computes a part, for the dropout mask: the index
/// of its first batch element, head, query and key. All 0: it is no part.
struct Origin {
  int64_t batch, head, query, key;
  int64_t other_heads;  ///< heads of the larger call that this one does not have
};

enum class BiasKind { kNone, kAdditive, kBoolean };

/// The options of the score stage: what happens to a score between `scale * q k^T` and the softmax,
/// and to a weight after it. To add one, see generic/score_stage.h.
struct ScoreParams {
  double scale;

  double softcap;  ///< c > 0: a score s becomes c tanh(s / c); 0: off

  const void* alibi_slopes;  ///< native; adds -slope |position - key|; null: none
  int64_t slope_strides[2];  ///< batch, head

  BiasKind bias_kind;
  Storage bias_storage;     ///< of an additive bias
  const void* bias;         ///< for kBoolean, of type bool; true: attend
  int64_t bias_strides[4];  ///< batch, head, query, key; 0 to broadcast

  /// A query at position p attends keys p - left … p + right; -1: unbounded. Causal means right =
  /// 0.
  int64_t window_left, window_right;
  const int64_t* positions;     ///< null: query i has position i + keys - queries
  int64_t position_strides[3];  ///< batch, head, query

  /// Native; an extra score per head that takes part in the softmax without a value; null: none.
  const void* sinks;
  int64_t sink_strides[2];  ///< batch, head

  double dropout;
  uint64_t dropout_seed;
  Origin dropout_origin;
};

struct ForwardParams {
  Shape shape;
  ScoreParams score;
  Storage storage;  ///< of query, key and value
  FloatParts float_parts;
  ConstRows query, key, value;
  Storage out_storage;
  MutableRows out;
  void* row_max;  ///< native [batch, heads, queries]: the largest score
  void* row_sum;  ///< native [batch, heads, queries]: sum of exp(score - row_max)
  int64_t block_size;
  /// Whether `key` is a part of a longer sequence, whose partial results are merged. If so, a row
  /// without a positive weight is 0. If not, it is NaN if it attends a key, as the softmax of
  /// scores that are all -inf is.
  bool is_part;
};

struct BackwardParams {
  Shape shape;
  ScoreParams score;
  Storage storage;  ///< of query, key and value
  FloatParts float_parts;
  ConstRows query, key, value;
  Storage out_storage, grad_out_storage;
  ConstRows out, grad_out;
  const void* row_max;
  const void* row_sum;
  const void* grad_lse;  ///< [batch, heads, queries] contiguous, or null
  /// [batch, heads, queries] contiguous: the contribution of each row to the gradient of its slope
  /// and of its sink; null: not computed.
  void* grad_slope_rows;
  void* grad_sink_rows;
  MutableRows grad_query, grad_key, grad_value;  ///< data null: not computed
  void* grad_bias;                               ///< null: not computed
  /// True: several scores share an element, to which their gradients are added. False: each score
  /// has its own element, which is overwritten; elements outside of every window are left
  /// unchanged.
  bool grad_bias_adds;
  bool grad_bias_is_double;   ///< type if grad_bias_adds: double, else native
  Storage grad_bias_storage;  ///< type if not grad_bias_adds
  int64_t grad_bias_strides[4];
  int64_t block_size;
};

/// Elements per block of random words; dropout kernels split their work at block boundaries.
constexpr int64_t kDropoutBlock = 64;

/// What a dropout kernel computes from a kept element x; `scale` is 1 / (1 - dropout). A dropped
/// element has scale 0.
enum class DropoutKind {
  kPlain,         ///< scale x
  kAdd,           ///< other + scale x
  kRelu,          ///< scale relu(x)
  kGelu,          ///< scale gelu(x)
  kReluGradient,  ///< scale relu'(x) other
  kGeluGradient,  ///< scale gelu'(x) other
};

/// Contiguous arrays of `elements` elements: elements first, first + 1, … of a larger array.
/// Whether an element is kept depends only on the seed and its index in the larger array.
struct DropoutParams {
  DropoutKind kind;
  const void* input;
  const void* other;  ///< the residual or the gradient; null if the kind has none
  void* out;          ///< may be `input` or `other`
  void* value;    ///< for gradients: the result of kRelu or kGelu for `input`; null: not computed
  int64_t first;  ///< index of the first element, a multiple of kDropoutBlock
  int64_t elements;
  double dropout;
  uint64_t seed;
};

/// out[r][c] (+)= sum over n of left[r][n] * right[n][c], or with a bias = bias[c] + the sum.
struct ProductParams {
  const void* left;  ///< [rows, depth], any strides
  int64_t left_row, left_step;
  const void* right;  ///< [depth, columns], rows or columns contiguous
  int64_t right_row, right_column;
  void* out;  ///< [rows, columns], rows contiguous
  int64_t out_row;
  int64_t rows, depth, columns;
  bool add;                ///< add to `out`; else replace it
  const void* bias;        ///< [columns], added to each row if not `add`; null: none
  FloatParts float_parts;  ///< 2, or 0: only on vectors
};

/// out_i = max over j of s_ij - (sum over j of s_ij) / keys, with s_ij = query_i . key_index(i, j).
struct SparsityParams {
  ConstRows query;
  ConstRows key;
  const int64_t* index;  ///< [queries, samples] contiguous, in [0, keys)
  void* out;             ///< [batch, heads, queries] contiguous
  int64_t batch, heads, queries, keys, head_dim, samples;
};

/// A [batch, times, channels] tensor; channels are contiguous.
template <class Pointer>
struct SeriesOf {
  Pointer data;
  int64_t batch_stride;
  int64_t time_stride;
};
using ConstSeries = SeriesOf<const void*>;
using MutableSeries = SeriesOf<void*>;

/// [batch, delays], each in [0, times). batch_stride is 0 if all batch elements share them.
struct Delays {
  const int64_t* data;
  int64_t batch_stride;
};

/// out[b, t, c] = sum over i of weights[b, i] * value[b, (t + delay[b, i]) mod times, c].
struct AggregationParams {
  int64_t batch, times, channels, delays;
  Delays delay;
  ConstSeries value;
  const void* weights;  ///< [batch, delays] contiguous
  MutableSeries out;
};

/// out[b, i] = scale * sum over t, c of query[b, (t + delay[b, i]) mod times, c] * key[b, t, c].
struct CorrelationParams {
  int64_t batch, times, channels, delays;
  Delays delay;
  ConstSeries query;
  ConstSeries key;
  double scale;
  void* out;  ///< [batch, delays] contiguous
};

}  // namespace flash
